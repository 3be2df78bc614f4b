"""The figures of interventions: what a change did to surprisal, entropy, varentropy and answers."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..colours import BLUE, ORANGE, RED
from .style import figure, styled, token_label

MEASURES = (("surprisal", "nats", RED, "o-"), ("entropy", "nats", BLUE, "s-"), ("varentropy", "nats²", ORANGE, "^-"))


@styled
def effects(named: dict):
    """Three panels, surprisal, entropy and varentropy: a row to each change of named, with its interval."""
    fig, axes = figure(1, 3, figsize=(12, 0.9 + 0.34 * len(named)), sharey=True)
    for ax, (measure, unit, colour, style) in zip(axes, MEASURES, strict=True):
        value, half = np.array([found[measure] for found in named.values()]).T
        ax.errorbar(value, list(named), xerr=half, fmt=style[0], color=colour, ms=5, capsize=3)
        ax.axvline(0, color="black", lw=0.8)
        ax.set(title=measure, xlabel=f"change, {unit}")
    axes[0].invert_yaxis()
    return axes


@styled
def layer_effects(found):
    """The effects of leaving out each layer, in their order: surprisal and entropy, and varentropy, with intervals."""
    fig, axes = figure(1, 3, figsize=(12, 3.4), sharex=True)
    for ax, (measure, unit, colour, style) in zip(axes, MEASURES, strict=True):
        value, half = np.array([effect[measure] for effect in found]).T
        ax.errorbar(range(len(value)), value, yerr=half, fmt=style, color=colour, ms=3.5, lw=1, capsize=2)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(title=measure, xlabel="layer left out", ylabel=f"change, {unit}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


@styled
def patching(measured: dict, layers, pieces, n: int):
    """Layers by patched positions, a map to each measured [layers, positions]: (values, unit) by title. pieces: the
    texts of the patched positions; n: the pairs of prompts that a value is the mean of."""
    fig, axes = figure(1, len(measured), figsize=(12, 3.9), sharey=True)
    largest = lambda unit: max(np.max(values) for values, u in measured.values() if u == unit)
    for ax, (title, (values, unit)) in zip(axes, measured.items(), strict=True):
        top = 1 if unit == "probability" else np.ceil(5 * largest(unit)) / 5  # the bar's last mark
        ax.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=top)
        ax.set_xticks(range(len(pieces)), map(token_label, pieces), rotation=45, fontsize=9)
        ax.set_yticks(range(len(layers)), layers)
        ax.set(title=title, xlabel="patched position")
        ax.grid(False)
    for unit in dict.fromkeys(unit for _, unit in measured.values()):  # one bar to a unit
        alike = [ax for ax, (_, u) in zip(axes, measured.values(), strict=True) if u == unit]
        of = f"{unit} in both maps" if len(alike) == 2 else unit
        fig.colorbar(alike[0].images[0], ax=alike, label=f"{of}, mean of {n} pairs", pad=0.02)
    fig.get_layout_engine().set(wspace=0.08)  # else a bar's label touches the next map
    axes[0].set_ylabel("after layer")
    return axes
