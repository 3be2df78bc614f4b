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
    fig, axes = figure(1, 3, figsize=(9.6, 3.9), sharey=True)
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
    fig, axes = figure(1, 2, figsize=(9.2, 3.2), sharex=True)
    colours, styles = (BLUE, RED, ORANGE, PURPLE, GREEN), ("-", "--", "-.", ":", "-")
    labels = "attention entropy, nats", "share of ln n"
    for ax, curves, label in zip(axes, (measured, relative), labels, strict=True):
        for (name, values), colour, style in zip(curves.items(), colours, styles, strict=False):
            ax.plot(live, _running_mean(values), style, color=colour, lw=1.8, label=name)
        top = 1.35 * max(np.nanmax(_running_mean(values)) for values in curves.values())  # room for the legend
        ax.set(xlabel="live slots", ylabel=label, ylim=(0, top))
        ax.legend(fontsize=8, ncols=2, loc="upper center", columnspacing=1)
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
    """Some heads large, and below them all heads of a model at a glance, a square tile to each.

    probs: attention probabilities [L,N,T,S], S at least T; pieces: the T tokens' texts; names: {(layer, head): text} of
    heads that are drawn large after the one that is asked for, and framed among the tiles. In a tile rows
    attend to columns, as in the large maps.
    """
    L, N, T, _ = probs.shape
    names = names or {}
    large = list(dict.fromkeys([(layer, head), *names]))
    look = dict(norm=PowerNorm(0.5, 0, 1), cmap=plt.get_cmap("cividis", 16), interpolation="nearest")
    shape = dict(figsize=(10, 3 + 9 * N / L), height_ratios=(2.5, 9 * N / L))
    fig, axes = figure(2, len(large), squeeze=False, **shape)
    maps, grid = axes[0], axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    sheet_ax = fig.add_subplot(grid[1, :])
    for ax, at in zip(maps, large, strict=True):
        image = ax.imshow(np.ma.masked_where(~np.tri(T, dtype=bool), probs[*at, :, :T]), **look)
        ax.set_xticks(range(T), map(token_label, pieces), rotation=90, fontsize=7)
        ax.set_yticks(range(T), map(token_label, pieces) if ax is maps[0] else [], fontsize=7)
        ax.set_title(f"Layer {at[0]}, head {at[1]}" + (f": {names[at]}" if at in names else ""), fontsize=8)
    maps[0].set_ylabel("token that attends")
    sheet = np.full((N * (T + 2), L * (T + 2)), np.nan)
    for i, j in np.ndindex(L, N):
        past = np.where(np.tri(T, dtype=bool), probs[i, j, :, :T], np.nan)
        sheet[j * (T + 2) : j * (T + 2) + T, i * (T + 2) : i * (T + 2) + T] = past
    sheet_ax.imshow(sheet, **look)
    for i, j in large:
        x, y = i * (T + 2) - 1.5, j * (T + 2) - 1.5
        sheet_ax.add_patch(Rectangle((x, y), T + 2, T + 2, fill=False, color=RED, lw=1.6, clip_on=False))
    every = max(1, L // 15)
    sheet_ax.set_xticks(np.arange(0, L, every) * (T + 2) + T / 2, range(0, L, every))
    sheet_ax.set_yticks(np.arange(N) * (T + 2) + T / 2, range(N))
    sheet_ax.set(xlabel="layer", ylabel="head", title=f"All {L * N} heads")
    for ax in (*maps, sheet_ax):
        ax.grid(False)
    fig.colorbar(image, ax=[*maps, sheet_ax], label="probability", shrink=0.6, pad=0.01, aspect=40)
    return *maps, sheet_ax
