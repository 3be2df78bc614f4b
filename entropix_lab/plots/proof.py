"""The figures of a comparison, reached as lab.plots.NAME: data in, matplotlib Axes out."""

import numpy as np
from matplotlib.ticker import NullFormatter

from ..colours import BLUE, COLOURS, RED
from ..proof.taps import OPS, split
from .style import figure, styled


@styled
def layer_diff(report):
    """Three panels from a compare Report. The residual stream's relative L2 error after each layer, accumulated and
    local: ours against the reference's, and both against float64 (median position), with the floor of correct variants
    and the limit. And every op of every layer on the reference's own inputs: its error in units of its limit."""
    rows = {split(row.tap): row for row in report.rows}
    layers = sorted(layer for layer, op in rows if op == "")
    stream = [rows[i, ""] for i in layers]
    fig, axes = figure(1, 3, figsize=(13.5, 4.6), width_ratios=(1, 1, 1.3))
    axes[1].sharey(axes[0])
    for ax, view, which in zip(axes[:2], ("accumulated", "local"), ("", "local_"), strict=True):
        medians = lambda of, name: np.array([getattr(x, name)[0] or np.nan for x in of])  # no 0 on a log axis
        views = [getattr(row, view) for row in stream]
        ax.fill_between(layers, medians(views, "floor"), medians(views, "limit"), color="0.85", label="floor to limit")
        ours, theirs = medians(stream, which + "our_error"), medians(stream, which + "meta_error")
        ax.plot(layers, ours, "-", color=RED, lw=2.4, label="ours against float64")
        ax.plot(layers, theirs, "--", color=BLUE, lw=1.6, label=f"{report.theirs} against float64")
        error = medians(views, "error")
        ax.plot(layers, error, ".:", color="black", lw=1.6, ms=4, label=f"ours against {report.theirs}")
        ax.set(yscale="log", xlabel="layer", title=f"Stream after each layer, {view}")
    low, high = np.log10(axes[0].get_ylim())
    axes[0].set(ylabel="relative L2 error, median position", ylim=(10 ** np.floor(low), 10 ** np.ceil(high)))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)

    ax = axes[2]
    grid = np.array([[rows[i, op].op.limit_ratio if (i, op) in rows else np.nan for i in layers] for op in OPS])
    shown = np.log10(np.clip(grid, 0.1, 10))
    image = ax.imshow(shown, aspect="auto", cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_yticks(range(len(OPS)), [op.split(".")[-1] or "layer output" for op in OPS])
    ax.set(xlabel="layer", title=f"Every op on {report.theirs} own inputs: error in units of its limit")
    ax.grid(False)
    y, x = np.nonzero(grid > 1)
    ax.plot(x, y, "x", color="black", ms=5, mew=1.4)
    bar = fig.colorbar(image, ax=ax, shrink=0.9, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["≤ 0.1", "1", "≥ 10"])
    return axes


@styled
def fault_table(tables):
    """{dtype: the table that benchmarks/faults.py wrote} as two panels: how many times its limit each fault lies at the
    first divergence, one marker to a prompt's length. Filled: at the expected tap; a ring: allclose notices nothing;
    the grey zone: as far as the untouched model and the correct variants came."""
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
            ax.plot(x[right], y[right], marker, color=colour, ms=4.5, label=f"{length} tokens")
            ax.plot(x[~right], y[~right], marker, color=colour, ms=4.5, mfc="white")
            label = "allclose on the logits holds" if i == len(lengths) - 1 else None
            ax.plot(x[hidden], y[hidden], "o", color="black", ms=9, mfc="none", mew=0.8, label=label)
        ax.axvline(1, color="black", lw=1.2)
        nearest = max(row["limit_ratio"] for row in t["clean"] + t["controls"])
        ax.axvspan(0.1, nearest, color="0.85", label="the untouched model, correct variants")
        ax.set_xlim(0.3, 2e6)
        ax.set(xscale="log", xlabel="error in units of its limit", title=dtype)
    axes[0, 0].set_yticks(range(len(names)), [f"{what}  {name}" for name, what in names], fontsize=8.5)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
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
