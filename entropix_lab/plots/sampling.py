"""The figures of what samplers choose and whether it helps."""

import numpy as np

from ..colours import BLUE, COLOURS, GREEN, ORANGE, PURPLE, RED, SKY
from ..evaluation.statistics import interval, matched
from ..sampling import BRANCHES
from .entropy import MARKERS
from .style import figure, styled, token_label


@styled
def margins(generations, rounding=1e-5):
    """How many steps had what margin between the two largest logits; dashed: rounding times a logit of 30."""
    values = np.concatenate([g.margins for g in generations])
    fig, ax = figure(figsize=(7, 2.8))
    ax.hist(np.maximum(values, 1e-6), np.geomspace(1e-6, max(values.max(), 1) * 1.1, 50), color=BLUE)
    ax.axvline(30 * rounding, color="black", ls="--", lw=1.2, label="rounding")
    ax.set(xscale="log", yscale="log", xlabel="difference of the two largest logits", ylabel="steps")
    ax.set_ylim(0.5)  # a bar of one step
    ax.set_title(f"{len(values)} steps, the closest {values.min():.1e}")
    ax.legend()
    return ax


@styled
def accuracy_against_surprisal(curve, others):
    """Accuracy of sampler runs, {name: Tallied}, with 95 % intervals over tasks, against the mean surprisal of their
    tokens. curve: one sampler at rising temperatures, with a line of mixtures (evaluation.matched) against which the
    others are read."""
    fig, ax = figure(figsize=(8, 4), dpi=76)
    look = zip("os^DvPX*", [RED, ORANGE, GREEN, PURPLE, SKY, "black", "#666666", "#999999"], strict=True)
    place = lambda run: (run.mean_surprisal, run.accuracy.mean())
    bars = lambda run: np.abs(np.subtract(interval(run.accuracy), run.accuracy.mean()))[:, None]
    ends = [run.mean_surprisal for run in curve.values()]
    mixed = np.geomspace(ends[0], ends[-1], 80)
    line = [matched(curve, x).accuracy.mean() for x in mixed]
    ax.plot(mixed, line, "--", color=BLUE, lw=1.5, zorder=1, label="plain, by temperature")
    for i, (name, run) in enumerate(curve.items()):
        ax.errorbar(*place(run), below := bars(run), fmt="o", color=BLUE, capsize=3, ms=4)
        # below all intervals, neighbours' names at two heights
        ax.plot([ends[i]] * 2, [0, run.accuracy.mean() - below[0, 0]], color=BLUE, lw=0.6, ls=":", zorder=1)
        box = dict(color=BLUE, fontsize=8.5, ha="center", bbox=dict(facecolor="white", lw=0, pad=0.5))
        ax.annotate(name, (ends[i], 0.04 + 0.06 * (i % 2)), xycoords=("data", "axes fraction"), **box)
    for (name, run), (marker, colour) in zip(others.items(), look, strict=False):
        white = dict(mfc="white", mew=1.5, ms=8, capsize=3, zorder=3)
        ax.errorbar(*place(run), bars(run), fmt=marker, color=colour, label=name, **white)
    ax.set(xscale="log", xlabel="mean surprisal of the drawn tokens, nats", ylabel="accuracy", ylim=(0, None))
    ax.set_xticks(ticks := [t for t in (0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4) if t <= 1.1 * ax.get_xlim()[1]], ticks)
    ax.minorticks_off()
    ax.legend(loc="upper right", ncols=2)
    return ax


@styled
def differences(comparisons):
    """A dict of evaluation.Paired as points with 95 % intervals; the grey bars are what this size cannot detect."""
    fig, ax = figure(figsize=(8, 0.3 * len(comparisons) + 1.2), dpi=76)
    _points(ax, comparisons)
    fig.legend(loc="outside lower center")
    return ax


def _points(ax, comparisons):
    for i, c in enumerate(comparisons.values()):
        label = "too small to be found four times in five" if i == 0 else None
        ax.barh(i, 2 * c.detectable, left=-c.detectable, color="0.9", height=0.7, zorder=0, label=label)
        ends = [[c.difference - c.low], [c.high - c.difference]]
        ax.errorbar(c.difference, i, xerr=ends, fmt="o", color=RED, capsize=3)
    ax.use_sticky_edges = False  # the widest bar ends before the axis
    ax.axvline(0, color="black", lw=1)
    ax.set_yticks(range(len(comparisons)), list(comparisons))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="difference of accuracy")


@styled
def accuracy_by_slope(comparisons, runs):
    """What is compared, as in differences; and beside it of {slope: Tallied} the surprisal that was to be equal, dotted
    that without a slope."""
    fig, (ax, beside) = figure(1, 2, figsize=(9, 3), width_ratios=(2, 1), dpi=76)
    _points(ax, comparisons)
    fig.legend(loc="outside lower left")
    nats = [runs[s].mean_surprisal for s in sorted(runs)]
    beside.plot(sorted(runs), nats, "s--", color=BLUE, ms=6)
    beside.axhline(runs[0].mean_surprisal, color="black", lw=1, ls=":")
    beside.set(xlabel="slope of log T over entropy, 1/nat", xticks=sorted(runs)[::2])
    beside.set(ylabel="mean surprisal, nats", ylim=(0.9 * min(nats), 1.1 * max(nats)))
    return ax


@styled
def branch_planes(entropy, varentropy, taken):
    """Steps in the plane of entropy (nats) and varentropy (nats^2), coloured by the branch that the threshold sampler
    takes, with its share; dotted: its thresholds. taken: {name: (branch [T], sampler)}, a panel to each. The axes are
    square roots: most steps are near the corner."""
    fig, axes = figure(1, len(taken), figsize=(1 + 5.5 * len(taken), 4.8), sharey=True, squeeze=False)
    for ax, (title, (branch, sampler)) in zip(axes[0], taken.items(), strict=True):
        for i, (name, colour, marker) in enumerate(zip(BRANCHES, COLOURS, MARKERS, strict=True)):
            of = np.asarray(branch) == i
            label = f"{name} {of.mean():.1%}"
            ax.plot(entropy[of], varentropy[of], marker, color=colour, ms=4, alpha=0.6, mew=0, label=label)
        small = dict(textcoords="offset points", fontsize=8, color="0.3")
        for name in ("low", "medium", "high"):
            x = _nats(sampler, name, "entropy")
            ax.axvline(x, color="0.3", ls=":", lw=1.2)
            ax.annotate(f"{name}\n{x:.2f}", (x, 1), (0, 3), xycoords=("data", "axes fraction"), ha="center", **small)
        for name in ("low", "high"):
            y = _nats(sampler, name, "varentropy")
            ax.axhline(y, color="0.3", ls=":", lw=1.2)
            ax.annotate(f"{name} {y:.2f}", (1, y), (4, 0), xycoords=("axes fraction", "data"), va="center", **small)
        root = (lambda x: np.sqrt(np.maximum(x, 0)), np.square)
        ax.set_xscale("function", functions=root)
        ax.set_yscale("function", functions=root)
        ax.set(xlabel="entropy, nats", ylim=(0, None), xlim=(0, None))
        ax.set_title(title, loc="left", pad=26)  # above the names of the thresholds
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3, markerscale=2)
    axes[0, 0].set_ylabel("varentropy, nats²")
    return axes[0]


def _nats(sampler, level, quantity):
    """A threshold of the sampler, which keeps bits and bits^2, in nats or nats^2."""
    return getattr(sampler, f"{level}_{quantity}") * np.log(2) ** (2 if quantity == "varentropy" else 1)


@styled
def branch_parameters(pieces, info, sampler):
    """What the threshold sampler saw before each token of a text and how warm it drew, from what it reported
    (Generation.info): entropy (nats), varentropy (nats^2) and temperature, coloured by branch; dotted: its thresholds
    "high" of the first two."""
    fig, axes = figure(3, 1, figsize=(12, 5.2), sharex=True)
    at, branch = np.arange(len(pieces)), info["branch"]
    for ax, name, unit in zip(axes, ("entropy", "varentropy", "temperature"), (",\nnats", ",\nnats²", ""), strict=True):
        for i in np.unique(branch):
            of = branch == i
            count = f"{BRANCHES[i]} ({of.sum()})"
            ax.plot(at[of], info[name][of], MARKERS[i], color=COLOURS[i], ms=5.5, label=count)
        ax.set(ylabel=name + unit, ylim=(0, 1.15 * info[name].max()))
    for ax, name in zip(axes, ("entropy", "varentropy"), strict=False):
        ax.axhline(_nats(sampler, "high", name), color="0.3", ls=":", lw=1.2)
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5)
    axes[2].set_xticks(at, map(token_label, pieces), rotation=90, fontsize=8)
    axes[2].set_xlim(-0.6, len(pieces) - 0.4)
    fig.align_ylabels(axes)
    return axes


@styled
def kept(probabilities, pieces, filters):
    """The likeliest next tokens with their probabilities (bars), and which of them each filter keeps (dots).

    filters: {name: bool [V]}; probabilities [V] and the pieces of their tokens, both by falling probability."""
    fig, ax = figure(2, 1, figsize=(10, 4.4), sharex=True, height_ratios=(2, 1.2))
    n = len(pieces)
    ax[0].bar(range(n), probabilities[:n], color=BLUE, width=0.7)
    ax[0].set(ylabel="probability", yscale="log", ylim=(probabilities[n - 1] / 2, 1))
    for y, mask in enumerate(filters.values()):
        colour, marker = COLOURS[(y + 1) % 5], MARKERS[y % 5]
        ax[1].plot(np.flatnonzero(mask[:n]), np.full(mask[:n].sum(), y), marker, color=colour, ms=6)
    ax[1].set_yticks(range(len(filters)), [f"{name} keeps {mask.sum()}" for name, mask in filters.items()])
    ax[1].set_ylim(len(filters) - 0.5, -0.5)
    ax[1].set_xticks(range(n), map(token_label, pieces), rotation=90)
    return ax
