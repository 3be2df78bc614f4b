"""The figures of entropy, attention and the logit lens; reached as lab.plots.NAME. A gen is a Generation or a Trace."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from ..colours import BLUE, COLOURS, GREEN, ORANGE, RED, SKY
from ..sampling import NAMES
from .style import figure, styled, token_label

MARKERS = "os^Dv"
GROUND = "YlOrBr"  # text stays black on it, and it survives greyscale


def trace_of(gen):
    trace = getattr(gen, "trace", gen)
    if trace is None:
        raise ValueError("this generation has no trace: pass trace=True to generate")
    return trace


def _token_axis(ax, trace):
    if len(trace) <= 90:
        ax.set_xticks(
            range(len(trace)), map(token_label, trace.pieces), rotation=90, fontsize=8 if len(trace) <= 60 else 6.5
        )
    ax.set_xlim(-0.6, len(trace) - 0.4)


@styled
def entropy_trace(gen):
    """Entropy of the model and surprisal of the token that came, and varentropy, along the text of a gen.

    A few surprisals far above all else stand at the rim, with their value. What a sampler reported as its branch or
    policy colours a strip along the bottom.
    """
    trace = trace_of(gen)
    fig, axes = figure(2, 1, figsize=(9.6, 3.9), sharex=True, height_ratios=(1.6, 1))
    at = np.arange(len(trace))
    axes[0].plot(at, trace.entropy, "-", color=BLUE, lw=1.6, label="entropy before the token")
    axes[0].plot(at, trace.surprisal, "o", color=RED, ms=4, label="surprisal of the token")
    highest = 1.2 * max(trace.entropy.max(), trace.surprisal.max(), 1e-3)  # room for the legend
    top = 1.3 * max(trace.entropy.max(), np.percentile(trace.surprisal, 95), 1e-3)
    top = highest if highest < 1.5 * top else top
    far = np.flatnonzero(trace.surprisal > top)
    axes[0].plot(far, np.full(len(far), 0.94 * top), "^", color=RED, ms=5)
    for t in far:
        axes[0].annotate(f"{trace.surprisal[t]:.1f}", (t, 0.94 * top), (5, -3), textcoords="offset points", fontsize=8)
    axes[0].set(ylabel="nats", ylim=(0, top), title=f"Each token of the text ({len(trace)})")
    axes[0].legend(loc="upper right", ncols=2)
    axes[1].stairs(trace.varentropy, np.arange(len(trace) + 1) - 0.5, fill=True, color=SKY, alpha=0.7, lw=0)
    axes[1].set(ylabel="varentropy, nats²", ylim=(0, None))
    kind, taken = trace.taken
    if kind:
        top = max(trace.varentropy.max(), 1e-3)
        for i in np.unique(taken):
            where = at[taken == i]
            label = f"{NAMES[kind][i]} ({len(where)})"
            axes[1].plot(where, np.full(len(where), -0.12 * top), MARKERS[i], ms=6, color=COLOURS[i], label=label)
        axes[1].set_ylim(-0.25 * top, 1.6 * top)
        axes[1].legend(loc="upper right", ncols=5, fontsize=8, title=kind, title_fontsize=8)
    _token_axis(axes[1], trace)
    return axes


@styled
def quadrants(gens, lines=(1.5, 2.5), labels: int = 14):
    """The plane of entropy and varentropy: a point to each token of a gen, of a list, or of a dict of them by name.

    lines: the (entropy, varentropy) that part the plane, in nats and nats^2. The points furthest out carry their
    token's text, as many as labels and where there is room. Coloured by the sampler's branch or policy when every trace
    has one, else by gen.
    """
    named = gens if isinstance(gens, dict) else dict(enumerate(gens if isinstance(gens, list | tuple) else [gens]))
    traces = {name: trace_of(gen) for name, gen in named.items()}
    join = lambda of: np.concatenate([of(t) for t in traces.values()])
    H, V = join(lambda t: t.entropy), join(lambda t: t.varentropy)
    pieces = [p for t in traces.values() for p in t.pieces]
    sizes, (by_branch, *more) = [len(t) for t in traces.values()], {t.taken[0] for t in traces.values()}
    by_branch = None if more else by_branch
    kinds = join(lambda t: t.taken[1]) if by_branch else np.repeat(np.arange(len(traces)), sizes)
    name = NAMES[by_branch].__getitem__ if by_branch else lambda i: str(list(traces)[i])

    fig, ax = figure(figsize=(6.8, 4.5))
    for i in np.unique(kinds):
        style = dict(s=22, alpha=0.75, lw=0, marker=MARKERS[i % 5], color=COLOURS[i % 5])
        ax.scatter(H[kinds == i], V[kinds == i], label=f"{name(i)} ({(kinds == i).sum()})", **style)
    right, top = max(H.max(), lines[0]), max(V.max(), lines[1])
    ax.set(xlim=(-0.1, 1.12 * right), ylim=(-0.08 * top, 1.1 * top))  # below 0 there is room for the corners' names
    ax.axvline(lines[0], color="black", lw=0.8, ls=":")
    ax.axhline(lines[1], color="black", lw=0.8, ls=":")
    alike = f"{int(np.ceil(np.exp(lines[0])))} or more alike"  # so many have an entropy above the line
    corners = (("sure", 0, 0), (alike, 1, 0), ("one leads", 0, 1), ("many, unequal", 1, 1))
    for text, x, y in corners:
        where = dict(ha=("left", "right")[x], va=("bottom", "top")[y], transform=ax.transAxes)
        ax.text(0.01 + 0.98 * x, 0.01 + 0.98 * y, text, color="0.45", fontsize=9, style="italic", **where)
    _mark(ax, H, V, [token_label(p) for p in pieces], labels)
    ax.set(xlabel="entropy, nats", ylabel="varentropy, nats²", title=f"n = {len(H)} tokens")
    if len(np.unique(kinds)) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    return ax


def _mark(ax, x, y, texts, count):
    """Write the texts of the points furthest from the others' middle, leaving out those that would overlap."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    u, v = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
    taken = []
    for i in np.argsort(-np.hypot(u - np.median(u), v - np.median(v))):
        width = 0.016 * len(texts[i]) + 0.02
        clear = all(u[i] + width < a or a + w < u[i] or abs(v[i] - b) > 0.035 for a, b, w in taken)
        if len(taken) < count and clear and u[i] + width < 1 and texts[i].strip("·"):
            ax.annotate(texts[i], (x[i], y[i]), (4, 3), textcoords="offset points", fontsize=8)
            taken.append((u[i], v[i], width))


@styled
def token_heat(gen, value: str = "entropy", columns: int = 100):
    """The text of a gen, each token on a ground coloured by trace.<value> [T]: the figure for a page of paper.

    In JupyterLab the trace itself, as the last value of a cell, shows the same with details on hovering.
    """
    trace = trace_of(gen)
    values = np.asarray(getattr(trace, value), float)
    boxes, column, row = [], 0, 0
    for piece, v in zip(trace.pieces, values, strict=True):
        lines = piece.split("\n")
        for i, text in enumerate(lines):
            text += "⏎" if i < len(lines) - 1 else ""
            if column + len(text) > columns:
                column, row = 0, row + 1
            boxes.append((column, row, text, v))
            column, row = (0, row + 1) if text.endswith("⏎") else (column + len(text), row)
    width = max(x + len(text) for x, _, text, _ in boxes)
    fig, ax = figure(figsize=(1.6 + 0.092 * width, 0.9 + 0.3 * (row + 1)))
    scale = plt.Normalize(0, max(np.nanpercentile(values, 98), 1e-6) * 1.35)  # black text needs the lighter part
    for x, y, text, v in boxes:
        ax.add_patch(Rectangle((x, y - 0.45), len(text), 0.9, color=plt.get_cmap(GROUND)(scale(v)), lw=0))
        ax.text(x, y, text, family="DejaVu Sans Mono", fontsize=9.5, va="center", parse_math=False)
    ax.set(xlim=(0, width), ylim=(row + 0.6, -0.6))
    ax.set_axis_off()
    image = plt.cm.ScalarMappable(plt.Normalize(0, scale.vmax), GROUND)
    fig.colorbar(image, ax=ax, label=f"{value}, nats", shrink=0.95, pad=0.01)
    return ax


@styled
def lens_words(gen, every: int = 2, furthest: int = 1000):
    """The logit lens of a gen in words: the likeliest token as each layer would predict it, layers by tokens.

    The ground is the darker the nearer the token that came is to the top of that layer's prediction: from rank 0 (the
    word is right) to furthest and beyond. Every so many layers from the last one down.
    """
    trace = trace_of(gen)
    if trace.lens_rank is None:
        raise ValueError('this trace has no logit lens: pass lens=True to trace_text, or trace="lens" to generate')
    layers = np.arange(trace.lens_rank.shape[1])[::-1][::every][::-1]
    ranks = trace.lens_rank[:, layers].T
    fig, ax = figure(figsize=(12, 1.3 + 0.25 * len(layers)), dpi=95)  # small words, whatever the other figures have
    norm = LogNorm(1, furthest + 1, clip=True)
    image = ax.imshow(ranks + 1, aspect="auto", origin="lower", cmap="Blues_r", norm=norm)
    for (row, t), rank in np.ndenumerate(ranks):
        word = token_label(trace.words[int(trace.lens_tokens[t, layers[row], 0])])[:9]
        word = word if word.strip("·") else "␣" * len(word)  # at this size a lone "·" looks like a full stop
        colour = "white" if norm(rank + 1) < 0.45 else "black"
        ax.text(t, row, word, ha="center", va="center", fontsize=7.5, color=colour, clip_on=True)
    ax.grid(False)
    _token_axis(ax, trace)
    ax.set_yticks(range(len(layers)), layers)
    ax.set(ylabel="after layer", xlabel="the token that came")
    ticks = [10**i for i in range(len(str(furthest)))]
    bar = fig.colorbar(image, ax=ax, label="rank of the token that came", pad=0.01, extend="max")
    bar.set_ticks([1 + (tick if tick > 1 else 0) for tick in ticks], labels=[0, *ticks[1:]])
    bar.ax.minorticks_off()
    return ax


@styled
def two_outcomes():
    """Entropy and varentropy of a choice between two tokens, and of k tokens that share what one leaves over."""
    mixture = lambda p, k: np.array([p, *[(1 - p) / k] * k])
    moments = lambda q: ((q * -np.log(q)).sum(), (q * np.log(q) ** 2).sum() - (q * np.log(q)).sum() ** 2)
    p = np.linspace(0.001, 0.999, 999)
    fig, axes = figure(1, 2, figsize=(9, 3.2))
    H, V = np.array([moments(mixture(x, 1)) for x in p]).T
    axes[0].plot(p, H, "-", color=BLUE, label="entropy, nats")
    axes[0].plot(p, V, "--", color=RED, label="varentropy, nats²")
    axes[0].axvline(0.5, color="0.5", lw=0.8, ls=":")
    axes[0].annotate("50/50: varentropy 0", (0.5, 0), (0.5, 0.28), ha="center", fontsize=9, backgroundcolor="white")
    axes[0].set(xlabel="probability of the first of two tokens", ylim=(0, 0.85), title="Two tokens")
    axes[0].legend(loc="upper center", ncols=2)
    for k, colour, style in ((1, BLUE, "-"), (10, ORANGE, "--"), (100, GREEN, "-."), (10000, RED, ":")):
        H, V = np.array([moments(mixture(x, k)) for x in p]).T
        axes[1].plot(H, V, style, color=colour, label=f"1 against {k:,} equal" if k > 1 else "1 against 1")
    ties = np.array([2, 10, 100, 10000])
    axes[1].plot(np.log(ties), 0 * ties, "ko", ms=5, clip_on=False, zorder=3)
    below = dict(textcoords="offset points", fontsize=8, color="0.3", ha="center", va="top")
    for k in ties:
        axes[1].annotate(f"{k:,} equal", (np.log(k), 0), (0, -6), **below)
    axes[1].set(xlabel="entropy, nats", ylabel="varentropy, nats²", xlim=(-0.3, 10.5), ylim=(-3, 34))
    axes[1].set_title("One token, or a tail")
    axes[1].legend(fontsize=8.5, ncols=2, loc="upper center")
    return axes


@styled
def prediction(aurocs: dict, calibration, surprisal, title: str = ""):
    """Three panels: AUROC by name, (value, low, high); calibration.binned of top-1 probability against how often it was
    right; the same of entropy against surprisal. title: of what model and text, above all three."""
    fig, axes = figure(1, 3, figsize=(10.4, 3.5), width_ratios=(1.25, 1, 1))
    fig.suptitle(title, fontsize=10.5)
    names, (value, low, high) = list(aurocs), np.array(list(aurocs.values())).T
    axes[0].errorbar(value, names, xerr=(value - low, high - value), fmt="o", color=BLUE, capsize=3)
    axes[0].axvline(0.5, color="black", lw=0.8, ls=":")
    axes[0].invert_yaxis()
    axes[0].set(xlabel="AUROC, 95 % interval", title="Predicts that the likeliest does not come", xlim=(0.35, 1))
    for ax, curve, x, y in (
        (axes[1], calibration, "probability of the likeliest token", "how often it came"),
        (axes[2], surprisal, "entropy, nats", "mean surprisal, nats"),
    ):
        top = curve[:, :2].max() * 1.05
        ax.plot([0, top], [0, top], ":", color="black", lw=1, label="calibrated")
        ax.plot(curve[:, 0], curve[:, 1], "o-", color=RED, ms=4, label=f"bins of {curve[:, 2].min():.0f} tokens")
        ax.set(xlabel=x, ylabel=y, xlim=(0, top), ylim=(0, top))
        ax.legend(fontsize=8.5, loc="lower right")
    return axes
