"""The figures of time and size."""

import numpy as np
from matplotlib.ticker import LogLocator

from ..colours import BLUE, GREEN, ORANGE, RED
from .style import figure, styled


@styled
def cache_timing(t):
    """Milliseconds a token against the position, from a dict: "positions", "cached" and "recompute" (seconds at each;
    recompute may be NaN), "limit" (seconds that reading the memory takes)."""
    fig, axes = figure(1, 2, figsize=(11, 3.8))
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
    ax.set_xticks(positions, positions)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.legend()
    ax = axes[1]
    ax.plot(positions, ms("cached"), "o-", color=RED, label="with the KV cache")
    ax.plot(positions, ms("limit"), ":", color="black", label="reading weights and cache once")
    ax.set(xlabel="position (tokens before)", ylabel="ms a token", title="The cached token and its limit")
    ax.set_ylim(0, None)
    ax.legend(loc="lower right")
    return axes


@styled
def roofline(points, bandwidth, peak):
    """Operations a second against operations to a byte read. points: {name: (operations, bytes, seconds)}; bandwidth in
    bytes and peak in operations per second, both measured."""
    fig, ax = figure(figsize=(8, 4.4))
    at = {name: (done / read, done / seconds) for name, (done, read, seconds) in points.items()}
    intensities = [i for i, _ in at.values()]
    x = np.geomspace(min(intensities) / 2, 2.5 * max(peak / bandwidth, *intensities), 99)
    limit = ax.plot(x, np.minimum(x * bandwidth, peak) / 1e9, color="black", label="what this device allows, measured")
    ax.axvline(peak / bandwidth, color="black", lw=0.8, ls=":")
    sides = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate("bound by memory", (peak / bandwidth, 0.02), (-4, 0), ha="right", **sides)
    ax.annotate("by arithmetic", (peak / bandwidth, 0.02), (4, 0), ha="left", **sides)
    for (name, (i, rate)), marker in zip(at.items(), "osD^v<>ph", strict=False):
        share = f"{name}: {100 * rate / min(i * bandwidth, peak):.0f} %"
        ax.plot(i, rate / 1e9, marker, color=RED if name.startswith("decode") else BLUE, ms=8, label=share)
    ax.set(xscale="log", yscale="log", xlabel="operations to a byte that is read", ylabel="billion operations a second")
    handles = ax.get_lines()[2:] + limit  # what has no share comes last
    title = "share of the limit that is reached:"
    ax.legend(handles=handles, title=title, loc="upper left", bbox_to_anchor=(1, 1), alignment="left")
    return ax


@styled
def token_parts(rows, limits):
    """Bars of one token's milliseconds by part. rows: {name: {part: seconds}} without the whole; limits: {name: seconds
    that the device allows}, a line in each bar."""
    fig, ax = figure(figsize=(9, 0.9 + 0.55 * len(rows)))
    parts = list(next(iter(rows.values())))
    left, longest = np.zeros(len(rows)), 1e3 * max(sum(row.values()) for row in rows.values())
    for part, color, hatch in zip(parts, (BLUE, ORANGE, GREEN, "0.75", RED), ("", "", "..", "", "xx"), strict=False):
        ms = np.array([1e3 * row[part] for row in rows.values()])
        if not ms.any():  # in the legend it would have no bar
            continue
        bars = ax.barh(list(rows), ms, left=left, color=color, hatch=hatch, edgecolor="white", label=part, height=0.6)
        numbers = [f"{x:.1f}" if x > longest / 16 else "" for x in ms]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        ax.bar_label(bars, numbers, label_type="center", fontsize=9, bbox=box, zorder=4)
        left += ms
    for i, name in enumerate(rows):
        ax.plot(
            [1e3 * limits[name]] * 2,
            [i - 0.4, i + 0.4],
            color="black",
            zorder=3,
            label="what the roofline allows" if i == 0 else None,
        )
    ax.invert_yaxis()
    ax.set(xlabel="ms a step")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@styled
def batch_rates(measured, every, predicted):
    """Tokens a second against the number of rows: measured {rows: rate}, and as the roofline predicts them at every
    number of rows."""
    fig, ax = figure(figsize=(6.5, 3.6))
    ax.plot(every, predicted, ":", color="black", label="what this device allows")
    ax.plot(measured.keys(), measured.values(), "o-", color=RED, label="measured")
    ax.set(xscale="log", xlabel="rows", ylabel="tokens a second, all rows", ylim=(0, None))
    ax.set_xticks(list(measured), list(measured))
    ax.minorticks_off()
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
    fig, ax = figure(figsize=(7, 2.4))
    values = np.array(list(kinds.values())) / 1e6
    bars = ax.barh(list(kinds), values, color=BLUE)
    ax.bar_label(bars, [f"{v:.1f}" if v >= 0.1 else f"{v:.2f}" for v in values], padding=4)
    ax.invert_yaxis()
    title = f"{values.sum():.1f} million in all, tok_embeddings counted once"
    ax.set(xlabel="parameters, millions", xlim=(0, values.max() * 1.12), title=title)
    ax.grid(axis="y", visible=False)
    return ax
