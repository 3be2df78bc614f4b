"""Data in, matplotlib Axes out; one function to a figure."""

import numpy as np
from matplotlib.ticker import NullFormatter

from .plots_entropy import (
    MARKERS,
    attention_entropy,
    attention_positions,
    entropy_trace,
    lens_entropy,
    prediction,
    quadrants,
    token_heat,
    two_outcomes,
)
from .report import split
from .style import BLUE, COLOURS, GREEN, ORANGE, PURPLE, RED, SKY, styled
from .style import figure as _figure
from .taps import OPS


@styled
def layer_diff(report):
    """Three panels from a compare Report. The residual stream's relative L2 error after each layer, accumulated and
    local: ours against the reference's, and both against float64 (median position), with the floor of correct variants
    and the limit. And every op of every layer on the reference's own inputs: its error in units of its limit."""
    rows = {split(row.tap): row for row in report.rows}
    layers = sorted(layer for layer, op in rows if op == "")
    stream = [rows[i, ""] for i in layers]
    fig, axes = _figure(1, 3, figsize=(13.5, 4.6), width_ratios=(1, 1, 1.3))
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
    fig, axes = _figure(1, len(tables), figsize=(12, 1.5 + 0.2 * len(names)), sharey=True, squeeze=False)
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
    fig, ax = _figure(figsize=(7, 3))
    ax.plot(norms[:, 0], "-", color=RED, label="first token")
    ax.plot(np.median(norms[:, 1:], axis=1), "--", color=BLUE, label="median of the others")
    ax.set(yscale="log", xlabel="layer", ylabel="norm of the stream")
    ax.legend()
    return ax


@styled
def cache_timing(t):
    """Milliseconds a token against the position, from a dict: "positions", "cached" and "recompute" (seconds at each;
    recompute may be NaN), "limit" (seconds that reading the memory takes)."""
    fig, axes = _figure(1, 2, figsize=(11, 3.8))
    positions, ms = np.array(t["positions"]), lambda name: 1e3 * np.array(t[name])
    ax = axes[0]
    ax.plot(positions, ms("recompute"), "s--", color=BLUE, label="computing everything again")
    ax.plot(positions, ms("cached"), "o-", color=RED, label="with the KV cache")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="position (tokens before)",
        ylabel="ms a token",
        title="Cost of one more token",
    )
    ax.legend()
    ax = axes[1]
    ax.plot(positions, ms("cached"), "o-", color=RED, label="with the KV cache")
    ax.plot(positions, ms("limit"), ":", color="black", label="reading weights and cache once")
    ax.set(xlabel="position (tokens before)", ylabel="ms a token", title="The cached token and its limit")
    ax.set_ylim(0, None)
    ax.legend(loc="lower right")
    return axes


@styled
def margins(generations, rounding=1e-5):
    """How many steps had what margin between the two largest logits; dashed: rounding times a logit of 30."""
    values = np.concatenate([g.margins for g in generations])
    fig, ax = _figure(figsize=(7, 2.8))
    ax.hist(np.maximum(values, 1e-6), np.geomspace(1e-6, max(values.max(), 1) * 1.1, 50), color=BLUE)
    ax.axvline(30 * rounding, color="black", ls="--", lw=1.2, label="rounding")
    ax.set(xscale="log", yscale="log", xlabel="margin between the two largest logits", ylabel="steps")
    ax.set_title(f"{len(values)} steps, the closest {values.min():.1e}")
    ax.legend()
    return ax


@styled
def tensor_sizes(config):
    """Parameters of a model by kind of weight, in millions, from its config."""
    D, F, KH, L = config.dim, config.ffn_dim, config.n_kv_heads * config.head_dim, config.n_layers
    kinds = {
        "tok_embeddings, output (each)": config.vocab_size * D,
        "w1, w2, w3": 3 * L * D * F,
        "wq, wo": 2 * L * D * D,
        "wk, wv": 2 * L * KH * D,
        "norms": (2 * L + 1) * D,
    }
    fig, ax = _figure(figsize=(7, 2.4))
    values = np.array(list(kinds.values())) / 1e6
    bars = ax.barh(list(kinds), values, color=BLUE)
    ax.bar_label(bars, [f"{v:.1f}" if v >= 0.1 else f"{v:.2f}" for v in values], padding=4)
    ax.invert_yaxis()
    ax.set(xlabel="parameters, millions", xlim=(0, values.max() * 1.12))
    ax.grid(axis="y", visible=False)
    return ax


@styled
def attention_map(probs, labels):
    """The attention probabilities [N,T,S] of one layer's heads, one small map to a head; labels: T strings."""
    n, T = len(probs), len(labels)
    columns = min(n, 3)
    rows = -(-n // columns)
    fig, axes = _figure(rows, columns, figsize=(3 * columns, 2.5 * rows), sharex=True, sharey=True, squeeze=False)
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
    fig.supxlabel("attended token")
    fig.supylabel("token that attends")
    fig.colorbar(image, ax=axes, label="probability", shrink=0.7)
    return axes


@styled
def accuracy_against_surprisal(runs, plain):
    """Accuracy of sampler runs, with 95 % intervals over tasks, against the mean surprisal of what they drew. The names
    in `plain` are one sampler at several temperatures: a line, against which the others are read."""
    from .evaluation import interval

    fig, ax = _figure(figsize=(9, 4.2))
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
    fig, ax = _figure(figsize=(8, 0.5 * len(comparisons) + 1))
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
    fig, ax = _figure(figsize=(8, 4.2))
    for i, (name, colour, marker) in enumerate(zip(names, COLOURS, MARKERS, strict=True)):
        of = np.asarray(branch) == i
        ax.plot(
            entropy[of], varentropy[of], marker, color=colour, ms=3.5, alpha=0.6, mew=0, label=f"{name} {of.mean():.1%}"
        )
    ax.set(xlabel="entropy, bits", ylabel="varentropy, bits²", ylim=(0, None), xlim=(0, None))
    ax.legend(loc="upper right", markerscale=2)
    return ax
