"""The figures of attention: what is measured of it by layer and head, and the heads themselves to look at."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle

from ..colours import BLUE, GREEN, ORANGE, PURPLE, RED
from .entropy import trace_of
from .style import figure, styled, token_label


@styled
def attention_entropy(gen):
    """Layers by heads: attention entropy over its largest possible value, of all slots and without the sink; the share
    of the sink. Means over the tokens of a gen."""
    trace = trace_of(gen)
    panels = (
        ("All slots", trace.relative_attention_entropy, "entropy / ln n"),
        ("Without slot 0", trace.relative_attention_rest, "entropy / ln (n - 1)"),
        ("Slot 0 alone", trace.attention_sink, "probability"),
    )
    fig, axes = figure(1, 3, figsize=(12, 4.8), sharey=True)
    for ax, (title, values, label) in zip(axes, panels, strict=True):
        image = ax.imshow(np.nanmean(values, 0), aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=1)
        ax.grid(False)
        ax.set(xlabel="head", title=f"{title}: {label}")
    axes[0].set_ylabel("layer")
    fig.colorbar(image, ax=axes, label="share, from 0 to 1", shrink=0.9, pad=0.01)
    return axes


@styled
def attention_positions(live, measured: dict, relative: dict):
    """Attention entropy along positions, two panels: measured (nats) and relative, curves [T] by name over live [T],
    each value the mean of 15 neighbours."""
    fig, axes = figure(1, 2, figsize=(10, 3.4), sharex=True)
    colours, styles = (BLUE, RED, ORANGE, PURPLE, GREEN), ("-", "--", "-.", ":", "-")
    for ax, curves, unit in ((axes[0], measured, "nats"), (axes[1], relative, "share of the largest")):
        for (name, values), colour, style in zip(curves.items(), colours, styles, strict=False):
            ax.plot(live, _running_mean(values), style, color=colour, lw=1.8, label=name)
        top = 1.3 * max(np.nanmax(_running_mean(values)) for values in curves.values())  # room for the legend
        ax.set(xlabel="live slots", ylabel=f"attention entropy, {unit}", ylim=(0, top))
        ax.legend(fontsize=8.5, ncols=2, loc="upper center")
    return axes


def _running_mean(values, width=15):
    """The mean over up to width neighbours of each of values [T], NaN left out."""
    values = np.pad(np.asarray(values, float), width // 2, constant_values=np.nan)
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(values, width), -1)


@styled
def attention_map(probs, labels):
    """The attention probabilities [N,T,S] of one layer's heads, one small map to a head; labels: T strings."""
    n, T = len(probs), len(labels)
    columns = min(n, 3)
    rows = -(-n // columns)
    fig, axes = figure(rows, columns, figsize=(3 * columns, 2.5 * rows), sharex=True, sharey=True, squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.grid(False)
        if i >= n:
            ax.set_axis_off()
            continue
        past = np.ma.masked_where(np.triu(np.ones((T, T), bool), 1), probs[i][:, :T])
        image = ax.imshow(past, vmin=0, vmax=1, cmap="cividis")
        ax.set_title(f"head {i}")
        ax.set_xticks(range(T), labels, rotation=90, fontsize=8)
        ax.set_yticks(range(T), labels, fontsize=8)
    fig.supxlabel("attended token", fontsize=10)
    fig.supylabel("token that attends", fontsize=10)
    fig.colorbar(image, ax=axes, label="probability", shrink=0.7)
    return axes


@styled
def attention_tiles(probs, pieces, layer: int, head: int, names=None):
    """All heads of a model at a glance, a tile to each, and one of them large.

    probs: attention probabilities [L,N,T,S], S at least T; pieces: the T tokens' texts; names: {(layer, head): text} of
    heads that are marked by a frame, whose text is that of the large one's title too. In a tile rows attend to columns,
    as in the large map.
    """
    L, N, T, _ = probs.shape
    look = dict(norm=PowerNorm(0.5, 0, 1), cmap=plt.get_cmap("cividis", 16), interpolation="nearest")
    names = names or {}
    fig, axes = figure(1, 2, figsize=(11.2, 5), width_ratios=(1, 2.05))
    sheet = np.full((N * (T + 2), L * (T + 2)), np.nan)
    for i, j in np.ndindex(L, N):
        past = np.where(np.tri(T, dtype=bool), probs[i, j, :, :T], np.nan)
        sheet[j * (T + 2) : j * (T + 2) + T, i * (T + 2) : i * (T + 2) + T] = past
    one, sheet_ax = axes
    sheet_ax.imshow(sheet, aspect="auto", **look)
    for (i, j), colour in [(at, RED) for at in names] + [((layer, head), "black")]:
        corner = (i * (T + 2) - 1.5, j * (T + 2) - 1.5)
        sheet_ax.add_patch(Rectangle(corner, T + 2, T + 2, fill=False, color=colour, lw=1.6, clip_on=False))
    every = max(1, L // 15)
    sheet_ax.set_xticks(np.arange(0, L, every) * (T + 2) + T / 2, range(0, L, every))
    sheet_ax.set_yticks(np.arange(N) * (T + 2) + T / 2, range(N))
    framed = ", ".join(f"{kind} {i}.{j}" for (i, j), kind in names.items())
    sheet_ax.set(xlabel="layer", ylabel="head", title=f"All {L * N} heads" + (f"; framed: {framed}" if names else ""))
    past = np.ma.masked_where(~np.tri(T, dtype=bool), probs[layer, head, :, :T])
    image = one.imshow(past, **look)
    one.set_xticks(range(T), map(token_label, pieces), rotation=90, fontsize=7)
    one.set_yticks(range(T), map(token_label, pieces), fontsize=7)
    name = names.get((layer, head))
    one.set(
        xlabel="attended token",
        ylabel="token that attends",
        title=f"Layer {layer}, head {head}" + (f": {name}" if name else ""),
    )
    for ax in axes:
        ax.grid(False)
    fig.colorbar(image, ax=axes, label="probability", shrink=0.7, pad=0.01, location="bottom", aspect=50)
    return axes
