"""The figures of where answers are decided. Records and scores are those of evaluation.forks."""

import numpy as np

from ..colours import BLUE, GREEN, ORANGE, RED
from ..evaluation.forks import found_at, joined
from ..evaluation.statistics import interval, resampled
from .style import figure, styled, token_label

DPI = 74  # a dozen figures in one notebook, whose pictures are committed
LOOK = {"entropy": (RED, "-", "o"), "varentropy": (ORANGE, "--", "s"), "margin": (BLUE, "-.", "^")}
LOOK |= {"top-1": (GREEN, ":", "D"), "position": ("0.5", (0, (6, 2)), "v")}
# what the settings of a sampler are
NUMBERS = {"T": "temperature", "top-p": "p", "min-p": "min-p", "adaptive": "temperature"}
NUMBERS |= {"top-n-sigma": "n (std of logits)", "dirichlet": "target entropy, nats"}
FIRST = {"margin": "smallest margin", "top-1": "smallest top-1", "position": "earliest"}  # else the largest


@styled
def rates_by_kind(rates, low=0.2, high=0.8):
    """How often the tasks of each kind are passed, {kind: (rate, low, high)}; grey: from `low` to `high`."""
    fig, ax = figure(figsize=(8, 2.8), dpi=DPI)
    ax.axhspan(low, high, color="0.93", zorder=0)
    for x, (rate, *ends) in enumerate(rates.values()):
        colour, marker = (BLUE, "o") if low <= rate <= high else (RED, "s")
        ax.errorbar(x, rate, [[rate - ends[0]], [ends[1] - rate]], fmt=marker, color=colour, capsize=3)
    ax.set_xticks(range(len(rates)), rates, rotation=40, ha="right")
    ax.set(ylabel="share of greedy\nanswers that pass", ylim=(0, 1))
    return ax


@styled
def tuning_curves(tried, chosen, test):
    """A panel to each sampler: how many answers to the other tasks passed at each of its settings, with 95 % intervals
    over tasks, the chosen setting filled; and where a setting was run on the test's tasks, its accuracy there.

    tried: {sampler: {setting: Tallied}}; chosen: {sampler: setting}; test: {sampler: {setting: Tallied}}."""
    fig, axes = figure(2, -(-len(tried) // 2), figsize=(10, 5), sharey=True, squeeze=False, dpi=DPI)
    for ax in axes.flat[len(tried) :]:
        ax.set_axis_off()
    for ax, (name, runs) in zip(axes.flat, tried.items(), strict=False):
        for x, (setting, run) in enumerate(runs.items()):
            y, (low, high) = run.accuracy.mean(), interval(run.accuracy)
            face = RED if setting == chosen[name] else "white"
            ax.errorbar(x, y, [[y - low], [high - y]], fmt="o", color=RED, mfc=face, ms=7, capsize=2)
            if setting in test[name]:
                ax.plot(x + 0.25, test[name][setting].accuracy.mean(), "s", color=BLUE, ms=6)
        ax.set_xticks(range(len(runs)), runs, fontsize=9.5)
        ax.set(title=name, xlim=(-0.5, len(runs) - 0.3), ylim=(0, None))
        ax.set_xlabel(NUMBERS.get(name.split()[0], "setting"))
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy")
    entries = ((RED, "o", RED, "other tasks, chosen"), (RED, "o", "white", "other tasks"), (BLUE, "s", BLUE, "test"))
    handles = [axes[0, 0].plot([], [], m, color=c, mfc=f, label=label)[0] for c, m, f, label in entries]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return axes


@styled
def flip_rate(rows, bins=10):
    """Left: the share of forks that flip the verdict, by tenths of each score (equally many tokens to a bin), the
    entropy's with 95 % intervals over tasks. Right: the share of all flips that is found when a budget is spent on the
    tokens with the largest scores; black: the flips first, and tokens at random."""
    fig, (left, right) = figure(1, 2, figsize=(10, 3.4), dpi=DPI)
    score, flips, task, _ = joined(rows)
    at, budget, counts = np.arange(bins) + 0.5, np.linspace(0, 1, 101), resampled(len(rows), 400)
    for name, (colour, style, marker) in LOOK.items():
        part = np.argsort(np.argsort(score[name], kind="stable")) * bins // len(flips)
        of_task = lambda x, part=part: np.bincount(task * bins + part, x, len(rows) * bins).reshape(-1, bins)
        rates = counts @ of_task(flips) / np.maximum(counts @ of_task(np.ones(len(flips))), 1)
        left.plot(at, rates[0], color=colour, ls=style, marker=marker, ms=5, label=FIRST.get(name, f"largest {name}"))
        right.plot(budget, found_at(rows, name, budget), color=colour, ls=style)
        if name == "entropy":
            left.fill_between(at, *np.percentile(rates[1:], [2.5, 97.5], 0), color=RED, alpha=0.15, lw=0)
    left.axhline(flips.mean(), color="black", lw=1, ls=":", label="at random")
    right.plot(budget, budget, color="black", lw=1, ls=":")
    right.plot(budget, found_at(rows, "oracle", budget), color="black", lw=1, label="flips first")
    left.set(xlabel=f"tokens by score, in {bins} equal parts, most hesitant or earliest last", xlim=(0, bins))
    left.set(ylabel="share of forks that flip the verdict", ylim=(0, None))
    right.set(xlabel="share of all tokens that are forked", xlim=(0, 1))
    right.set(ylabel="share of all flips found", ylim=(0, 1.02))
    fig.legend(loc="outside lower center", ncols=7, fontsize=8.5)
    return left, right


@styled
def auroc_table(columns):
    """AUROCs with 95 % intervals: {title: {name: (value, low, high)}}, a panel to each title; 0.5 is chance. The first
    panel has all names."""
    names = list(next(iter(columns.values())))
    size = ((2.7 if len(columns) > 3 else 3.4) * len(columns) + 1.5, 0.26 * len(names) + 1)
    fig, axes = figure(1, len(columns), figsize=size, sharex=True, sharey=True, squeeze=False, dpi=DPI)
    for ax, (title, table) in zip(axes[0], columns.items(), strict=True):
        for name, (value, low, high) in table.items():
            xerr = [[value - low], [high - value]]
            ax.errorbar(value, names.index(name), xerr=xerr, fmt="o", color=BLUE, capsize=3)
        ax.axvline(0.5, color="black", lw=1, ls=":")
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel="AUROC", title=title, ylim=(len(names) - 0.5, -0.5))
    return axes[0]


@styled
def forked_answer(row):
    """One answer: entropy before each token, the token and below it its second choice; red, with a dot, where that
    flips."""
    fig, ax = figure(figsize=(10, 2.8), dpi=DPI)
    at, flips = np.arange(len(row["flips"])), np.array(row["flips"], bool)
    for of, colour, label in ((~flips, "0.7", "the verdict stays"), (flips, RED, "the verdict flips")):
        ax.bar(at[of], np.array(row["entropy"])[of], color=colour, width=0.7, label=label)
    pieces = (f"{token_label(a)}\n({token_label(b)})" for a, b in zip(row["pieces"], row["second"], strict=True))
    ax.set_xticks(at, pieces, rotation=45, fontsize=8.5)
    for label in np.array(ax.get_xticklabels())[flips]:
        label.set_color(RED)
    top = 1.12 * max(row["entropy"])
    ax.plot(at[flips], np.full(flips.sum(), top), "o", color=RED, ms=6)  # a bar may be too low to be seen
    ax.set(ylabel="entropy, nats", ylim=(0, 1.1 * top))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return ax
