"""The figures of where answers are decided. Records and scores are those of evaluation.forks."""

import numpy as np

from ..colours import BLUE, GREEN, ORANGE, RED
from ..evaluation.forks import found_at, scores
from ..evaluation.statistics import by_task, interval
from .style import figure, styled, token_label

DPI = 74  # a dozen figures in one notebook, whose pictures are committed
LOOK = {"entropy": (RED, "-", "o"), "varentropy": (ORANGE, "--", "s"), "margin": (BLUE, "-.", "^")}
LOOK |= {"top-1": (GREEN, ":", "D"), "position": ("0.5", (0, (6, 2)), "v")}
NUMBERS = {"T": "temperature", "top-p": "p", "min-p": "min-p", "top-n-sigma": "n", "adaptive": "temperature"}
LAST = {"margin": "smallest", "top-1": "smallest", "position": "earliest"}
NUMBERS |= {"dirichlet": "target entropy"}  # what the settings of a sampler are


@styled
def rates_by_kind(rates, low=0.2, high=0.8):
    """How often the tasks of each kind are passed, {kind: (rate, low, high)}; grey: from `low` to `high`."""
    fig, ax = figure(figsize=(8, 2.8), dpi=DPI)
    ax.axhspan(low, high, color="0.93", zorder=0)
    for x, (rate, *ends) in enumerate(rates.values()):
        colour, marker = (BLUE, "o") if low <= rate <= high else (RED, "s")
        ax.errorbar(x, rate, [[rate - ends[0]], [ends[1] - rate]], fmt=marker, color=colour, capsize=3)
    ax.set_xticks(range(len(rates)), rates, rotation=40, ha="right")
    ax.set(ylabel="greedy answers that pass", ylim=(0, 1))
    return ax


@styled
def tuning_curves(tried, chosen, test):
    """A panel to each sampler: how many answers to the other tasks passed at each of its settings, with 95 % intervals
    over tasks, the chosen setting filled; and where a setting was run on the test's tasks, its accuracy there.

    tried: {sampler: {setting: Tallied}}; chosen: {sampler: setting}; test: {sampler: {setting: Tallied}}."""
    fig, axes = figure(1, len(tried), figsize=(11, 3), sharey=True, dpi=DPI)
    for ax, (name, runs) in zip(axes, tried.items(), strict=True):
        for x, (setting, run) in enumerate(runs.items()):
            y, (low, high) = run.accuracy.mean(), interval(run.accuracy)
            face = RED if setting == chosen[name] else "white"
            ax.errorbar(x, y, [[y - low], [high - y]], fmt="o", color=RED, mfc=face, ms=7, capsize=2)
            if setting in test[name]:
                ax.plot(x + 0.25, test[name][setting].accuracy.mean(), "s", color=BLUE, ms=6)
        ax.set_xticks(range(len(runs)), runs, fontsize=8, rotation=45)
        ax.set_title(name, fontsize=9.5)
        ax.set(xlim=(-0.5, len(runs) - 0.3), ylim=(0, None), xlabel=NUMBERS.get(name.split()[0], "setting"))
    axes[0].set(ylabel="accuracy")
    entries = ((RED, "o", RED, "other tasks, chosen"), (RED, "o", "white", "other tasks"), (BLUE, "s", BLUE, "test"))
    handles = [axes[0].plot([], [], m, color=c, mfc=f, label=label)[0] for c, m, f, label in entries]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return axes


@styled
def flip_rate(rows, bins=10):
    """Left: the share of forks that flip the verdict, by tenths of each score (equally many tokens to a bin), the
    entropy's with 95 % intervals over tasks. Right: the share of all flips that is found when a budget is spent on the
    tokens with the largest scores; black: the flips first, and tokens at random."""
    fig, (left, right) = figure(1, 2, figsize=(10, 3.5), dpi=DPI)
    flips = np.concatenate([row["flips"] for row in rows])
    for name, (colour, style, marker) in LOOK.items():
        order = np.argsort(np.concatenate([scores(row)[name] for row in rows]), kind="stable")
        rate = [flips[part].mean() for part in np.array_split(order, bins)]
        label = f"{name}, {LAST[name]} last" if name in LAST else name
        left.plot(np.arange(bins) + 0.5, rate, color=colour, ls=style, marker=marker, ms=5, label=label)
    place = np.argsort(np.argsort(np.concatenate([scores(row)["entropy"] for row in rows]), kind="stable"))
    ends = np.cumsum([len(row["flips"]) for row in rows])[:-1]
    binned = np.split(place * bins // len(flips), ends)
    tasks = [(b, np.array(row["flips"])) for b, row in zip(binned, rows, strict=True)]
    rates = lambda b, f: np.bincount(b, f, bins) / np.maximum(np.bincount(b, minlength=bins), 1)
    _, low, high = by_task(rates, tasks, 400)
    left.fill_between(np.arange(bins) + 0.5, low, high, color=RED, alpha=0.15, lw=0, label="entropy, 95 % interval")
    left.axhline(flips.mean(), color="black", lw=1, ls=":")
    left.set(
        xlabel=f"tokens by score, in {bins} equal parts, most hesitant or earliest last",
        ylabel="forks that flip the verdict",
    )
    left.set(ylim=(0, 1.7 * left.get_ylim()[1]), xlim=(0, bins))
    left.legend(loc="upper right", fontsize=8.5, ncols=2)
    budget = np.linspace(0, 1, 101)
    for name, (colour, style, _) in LOOK.items():
        right.plot(budget, [found_at(rows, name, b) for b in budget], color=colour, ls=style, label=name)
    right.plot(budget, [found_at(rows, "oracle", b) for b in budget], color="black", lw=1)
    right.plot(budget, budget, color="black", lw=1, ls=":")
    right.set(
        xlabel="share of all tokens that are forked", ylabel="share of all flips found", xlim=(0, 1), ylim=(0, 1.02)
    )
    right.legend(loc="lower right")
    return left, right


@styled
def auroc_table(columns):
    """AUROCs with 95 % intervals: {title: {name: (value, low, high)}}, a panel to each title; 0.5 is chance."""
    names = list(next(iter(columns.values())))
    size = ((2.7 if len(columns) > 3 else 3.4) * len(columns) + 1.5, 0.32 * len(names) + 1)
    fig, axes = figure(1, len(columns), figsize=size, sharex=True, sharey=True, squeeze=False, dpi=DPI)
    for ax, (title, table) in zip(axes[0], columns.items(), strict=True):
        for y, (value, low, high) in enumerate(table[name] for name in names):
            ax.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=BLUE, capsize=3)
            ax.annotate(f"{value:.2f}", (value, y), (0, 5), textcoords="offset points", ha="center", fontsize=8.5)
        ax.axvline(0.5, color="black", lw=1, ls=":")
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel="AUROC", title=title, ylim=(len(names) - 0.4, -0.7))
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
