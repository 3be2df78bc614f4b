"""The figures of what samplers choose and whether it helps."""

import numpy as np

from ..colours import BLUE, COLOURS, GREEN, ORANGE, PURPLE, RED, SKY
from ..evaluation.runs import interval
from .entropy import MARKERS
from .style import figure, styled


@styled
def margins(generations, rounding=1e-5):
    """How many steps had what margin between the two largest logits; dashed: rounding times a logit of 30."""
    values = np.concatenate([g.margins for g in generations])
    fig, ax = figure(figsize=(7, 2.8))
    ax.hist(np.maximum(values, 1e-6), np.geomspace(1e-6, max(values.max(), 1) * 1.1, 50), color=BLUE)
    ax.axvline(30 * rounding, color="black", ls="--", lw=1.2, label="rounding")
    ax.set(xscale="log", yscale="log", xlabel="margin between the two largest logits", ylabel="steps")
    ax.set_title(f"{len(values)} steps, the closest {values.min():.1e}")
    ax.legend()
    return ax


@styled
def accuracy_against_surprisal(runs, plain):
    """Accuracy of sampler runs, with 95 % intervals over tasks, against the mean surprisal of what they drew. The names
    in `plain` are one sampler at several temperatures: a line, against which the others are read."""
    fig, ax = figure(figsize=(9, 4.2))
    colours = iter([RED, ORANGE, GREEN, PURPLE, SKY, "black", "#666666"])
    markers = iter("os^DvPX*")
    line = [(runs[name].mean_surprisal, runs[name].accuracy) for name in plain]
    ax.plot(*np.array(line).T, "--", color=BLUE, lw=1.5, zorder=1, label="plain, by temperature")
    for name, run in runs.items():
        colour = BLUE if name in plain else next(colours)
        low, high = interval(run.passed)
        x, y = run.mean_surprisal, run.accuracy
        ax.errorbar(
            x,
            y,
            [[y - low], [high - y]],
            fmt="o" if name in plain else next(markers),
            color=colour,
            capsize=3,
            ms=7,
            label=None if name in plain else name,
        )
        if name in plain:
            ax.annotate(name, (x, y), (6, 6), textcoords="offset points", color=BLUE, fontsize=8.5)
    ax.set(xlabel="mean surprisal of the drawn tokens, nats", ylabel="accuracy", ylim=(0, None))
    ax.legend(loc="upper right", ncols=2)
    return ax


@styled
def differences(comparisons):
    """A dict of evaluation.Paired as points with 95 % intervals; the grey band is what this size cannot detect."""
    fig, ax = figure(figsize=(8, 0.5 * len(comparisons) + 1))
    for i, c in enumerate(comparisons.values()):
        ax.barh(i, 2 * c.detectable, left=-c.detectable, color="0.9", height=0.7, zorder=0)
        ax.errorbar(
            c.difference, i, xerr=[[c.difference - c.low], [c.high - c.difference]], fmt="o", color=RED, capsize=3
        )
    ax.axvline(0, color="black", lw=1)
    ax.set_yticks(range(len(comparisons)), list(comparisons))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="difference of accuracy")
    return ax


@styled
def branch_plane(entropy, varentropy, branch, names):
    """Steps in the plane of entropy (bits) and varentropy (bits^2), coloured by the branch taken, with its share."""
    fig, ax = figure(figsize=(8, 4.2))
    for i, (name, colour, marker) in enumerate(zip(names, COLOURS, MARKERS, strict=True)):
        of = np.asarray(branch) == i
        ax.plot(
            entropy[of], varentropy[of], marker, color=colour, ms=3.5, alpha=0.6, mew=0, label=f"{name} {of.mean():.1%}"
        )
    ax.set(xlabel="entropy, bits", ylabel="varentropy, bits²", ylim=(0, None), xlim=(0, None))
    ax.legend(loc="upper right", markerscale=2)
    return ax
