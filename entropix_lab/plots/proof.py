"""The figures of a comparison, reached as lab.plots.NAME: data in, matplotlib Axes out."""

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import NullFormatter

from ..colours import BLUE, COLOURS, GREEN, RED
from ..proof.report import VIEWS
from ..proof.taps import OPS, split
from .style import figure, styled


@styled
def layer_diff(report):
    """Three panels from a compare Report. The residual stream's relative L2 error after each layer, accumulated and
    local: ours against the reference's, and both against float64 (median position), with the floor of correct variants
    and the limit; a triangle below marks a layer whose median position is the reference's bit for bit. And every op
    of every layer on the reference's own inputs: its error in units of its limit."""
    rows = {split(row.tap): row for row in report.rows}
    layers = sorted(layer for layer, op in rows if op == "")
    stream = [rows[i, ""] for i in layers]
    fig, axes = figure(1, 3, figsize=(12.5, 4.2), width_ratios=(1, 1, 1.3))
    axes[1].sharey(axes[0])
    equal = [[i for i in layers if getattr(rows[i, ""], view).error[0] == 0] for view in ("accumulated", "local")]
    for ax, view, which in zip(axes[:2], ("accumulated", "local"), ("", "local_"), strict=True):
        medians = lambda of, name: np.array([getattr(x, name)[0] or np.nan for x in of])  # no 0 on a log axis
        views = [getattr(row, view) for row in stream]
        low, high = (medians(views, name) for name in ("floor", "limit"))
        ax.fill_between(layers, low, high, color="0.85", label="floor to limit of ours against Meta's")
        ours, theirs = medians(stream, which + "our_error"), medians(stream, which + "meta_error")
        ax.plot(layers, ours, "-", color=RED, lw=2.4, label="ours against float64")
        ax.plot(layers, theirs, "--", color=BLUE, lw=1.6, label=f"{report.theirs} against float64")
        error = medians(views, "error")
        ax.plot(layers, error, ".:", color="black", lw=1.6, ms=4, label=f"ours against {report.theirs}")
        ax.set(yscale="log", xlabel="layer", title=f"Stream after each layer, {view}")
    low, high = np.log10(axes[0].get_ylim())
    axes[0].set(ylabel="relative L2 error, median position", ylim=(10 ** np.floor(low), 10 ** np.ceil(high)))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    if any(equal):
        for ax, at in zip(axes, equal, strict=False):
            low = dict(transform=ax.get_xaxis_transform(), label="median position bit for bit")
            ax.plot(at, [0.03] * len(at), "^", color=GREEN, ms=5, **low)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5)
    _every_op(fig, axes[2], report, rows, layers)
    return axes


def _every_op(fig, ax, report, rows, layers):
    """The third panel: dark is far below the limit, bright is beyond it, up to the largest ratio (at most 10^6)."""
    grid = np.array([[rows[i, op].op.limit_ratio if (i, op) in rows else np.nan for i in layers] for op in OPS])
    top = np.clip(np.ceil(np.log10(np.nanmax(grid, initial=1))), 1, 6)
    shown = np.log10(np.clip(grid, 0.01, 10**top))
    norm = TwoSlopeNorm(0, -2, top)  # the limit has one colour in all figures
    image = ax.imshow(shown, aspect="auto", cmap="cividis", norm=norm, interpolation="nearest")
    ax.set_yticks(range(len(OPS)), [op.split(".")[-1] or "layer output" for op in OPS])
    largest = np.nanmax(grid)
    largest = f"{largest:,.0f}" if largest > 10 else f"{largest:.2f}"
    ax.set(xlabel="layer", title=f"Every op on {report.theirs} own inputs, at most {largest} times its limit")
    ax.grid(False)
    y, x = np.nonzero(grid > 1)
    ax.plot(x, y, "x", color="black", ms=5, mew=1.4)
    ticks = [-2, -1, *range(int(top) + 1)]
    bar = fig.colorbar(image, ax=ax, ticks=ticks, label="error in units of its limit")
    name = lambda tick: "1, the limit" if tick == 0 else f"{10.0**tick:g}"
    ends = {-2: "≤ 0.01", 6: "≥ $10^6$"}
    bar.ax.set_yticklabels([ends.get(tick, name(tick)) for tick in ticks])
    bar.ax.axhline(0, color="white", lw=2)


@styled
def three_views(report, tap):
    """How a tap is judged, in two panels. What is computed by ours and what is the reference's own in each view; and
    the tap's error there (median position), its floor and its limit."""
    row, parts = report[tap], ("the layers before", "the ops before it", "the op itself")
    fig, (left, right) = figure(1, 2, figsize=(12, 2.6), width_ratios=(1.15, 1), sharey=True)
    for y, view in enumerate(VIEWS):
        for x, part in enumerate(parts):
            box = dict(boxstyle="round,pad=0.5", fc=RED if x >= y else "white", ec=RED if x >= y else BLUE, lw=1.5)
            left.text(x, y, part, ha="center", va="center", color="white" if x >= y else BLUE, bbox=box)
        seen = getattr(row, view)
        right.plot([seen.floor[0], seen.limit[0]], [y, y], "-", color="0.8", lw=14, solid_capstyle="butt")
        right.plot(max(seen.error[0], 1e-12), y, "o", color="black")
    left.set(xlim=(-0.5, 2.5), ylim=(2.6, -0.6), yticks=range(3), yticklabels=VIEWS, xticks=[])
    left.set_title(f"Filled: computed by ours; outlined: {report.theirs} own values")
    right.set(xscale="log", xlabel="relative L2 error, median position")
    _whole_decades(right)
    right.set_title(f"{tap}: error (dot), floor to limit (bar)")
    left.grid(False)
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    return left, right


def _whole_decades(ax):
    low, high = np.log10(ax.get_xlim())
    ax.set_xlim(10 ** np.floor(low), 10 ** np.ceil(high))
    ax.xaxis.set_minor_formatter(NullFormatter())


@styled
def op_noise(noise):
    """{who: {op: relative L2 distance from float64 on one's own inputs}} -> one row to an op of a layer."""
    fig, ax = figure(figsize=(8, 4.2))
    for (who, off), colour, marker in zip(noise.items(), (BLUE, RED, "black"), "Dox", strict=False):
        ax.plot([off[op] for op in OPS], range(len(OPS)), marker, color=colour, ms=6, mew=1.6, label=who)
    ax.set_yticks(range(len(OPS)), [op.split(".")[-1] or "layer output" for op in OPS])
    ax.set(xscale="log", xlabel="relative L2 distance from float64, median position")
    _whole_decades(ax)
    ax.invert_yaxis()
    fig.legend(loc="outside lower center", ncols=3)
    return ax


@styled
def fault_table(tables):
    """{dtype: the table that benchmarks/faults.py wrote} as two panels: how many times its limit each fault lies at the
    first divergence, one marker to a prompt's length. A cross: at another tap than the expected one; a ring: allclose
    notices nothing; an arrow: a million or more, infinity too; the grey zone: as far as the untouched model and the
    correct variants came."""
    names = sorted({row["name"]: row["what"] for t in tables.values() for row in t["faults"]}.items())
    where = {name: i for i, (name, _) in enumerate(names)}
    fig, axes = figure(1, len(tables), figsize=(12, 1.5 + 0.2 * len(names)), sharey=True, squeeze=False)
    lengths = sorted({row["tokens"] for t in tables.values() for row in t["faults"]})
    for ax, (dtype, t) in zip(axes[0], tables.items(), strict=True):
        for i, (length, colour, marker) in enumerate(zip(lengths, COLOURS, "o^D", strict=False)):
            rows = [row for row in t["faults"] if row["tokens"] == length]
            x = np.array([1e6 if row["limit_ratio"] is None else min(row["limit_ratio"], 1e6) for row in rows])
            y = np.array([where[row["name"]] for row in rows]) + 0.25 * (i - (len(lengths) - 1) / 2)
            right = np.array([row["found"] == row["expected"] for row in rows], bool)
            hidden = np.array([row["allclose"] for row in rows], bool)
            beyond = x == 1e6
            ax.plot(x[right & ~beyond], y[right & ~beyond], marker, color=colour, ms=4.5, label=f"{length} tokens")
            ax.plot(x[~right & ~beyond], y[~right & ~beyond], "x", color=colour, ms=7, mew=2)
            ax.plot(x[beyond], y[beyond], ">", color=colour, ms=5.5, mfc="none")
            label = "allclose on the logits holds" if i == len(lengths) - 1 else None
            ax.plot(x[hidden], y[hidden], "o", color="black", ms=9, mfc="none", mew=0.8, label=label)
        ax.axvline(1, color="black", lw=1.2, label="the limit")
        nearest = max(row["limit_ratio"] for row in t["clean"] + t["controls"])
        ax.axvspan(0.1, nearest, color="0.85", label="the untouched model, correct variants")
        ax.set_xlim(0.3, 2e6)
        ax.set(xscale="log", xlabel="error in units of its limit", title=dtype)
        ax.plot([], [], ">", color="0.4", mfc="none", label="a million or more, coloured by length")
        ax.plot([], [], "x", color="0.4", ms=7, mew=2, label="found at another tap, likewise")
    axes[0, 0].set_yticks(range(len(names)), [f"{what}  {name}" for name, what in names], fontsize=8.5)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return axes


@styled
def stream_norms(taps):
    """The norm of the residual stream [B,T,D] after each layer of a pass: the first token, and the others' median."""
    n_layers = sum(name.startswith("layers.") and name.count(".") == 1 for name in taps)
    norms = np.array([np.linalg.norm(taps[f"layers.{i}"], axis=-1)[0] for i in range(n_layers)])
    fig, ax = figure(figsize=(7, 3))
    ax.plot(norms[:, 0], "-", color=RED, label="first token")
    ax.plot(np.median(norms[:, 1:], axis=1), "--", color=BLUE, label="median of the others")
    ax.set(yscale="log", xlabel="layer", ylabel="norm of the stream")
    ax.legend()
    return ax
