"""The figures of time and size."""

import numpy as np

from ..colours import BLUE, RED
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
    ax.legend()
    ax = axes[1]
    ax.plot(positions, ms("cached"), "o-", color=RED, label="with the KV cache")
    ax.plot(positions, ms("limit"), ":", color="black", label="reading weights and cache once")
    ax.set(xlabel="position (tokens before)", ylabel="ms a token", title="The cached token and its limit")
    ax.set_ylim(0, None)
    ax.legend(loc="lower right")
    return axes


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
    ax.set(xlabel="parameters, millions", xlim=(0, values.max() * 1.12))
    ax.grid(axis="y", visible=False)
    return ax
