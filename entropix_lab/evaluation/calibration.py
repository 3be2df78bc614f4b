"""Do the metrics predict the model's mistakes? AUROC with intervals, calibration."""

import numpy as np

from .texts import windows as windows


def auroc(scores, events) -> float:
    """The probability that an event has a larger score than a non-event (ties count half): 0.5 is chance.

    scores and events (bool) [n]. By mid-ranks (Mann and Whitney). NaN where all events are alike.
    """
    events = np.asarray(events, bool)
    n, m = events.sum(), (~events).sum()
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][events].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def interval(statistic, texts, n: int = 400, seed: int = 0) -> tuple[float, float, float]:
    """(statistic of everything, 2.5 %, 97.5 %) by a bootstrap over whole texts: tokens of one text go together.

    texts: a tuple of arrays [texts, tokens], handed to statistic flattened.
    """
    rng, count = np.random.default_rng(seed), len(texts[0])
    flat = lambda rows: statistic(*(x[rows].ravel() for x in texts))
    drawn = [flat(rng.integers(0, count, count)) for _ in range(n)]
    return (flat(np.arange(count)), *(float(q) for q in np.nanpercentile(drawn, [2.5, 97.5])))


def binned(x, y, bins: int = 12) -> np.ndarray:
    """Means of x and y, and counts, in bins of equally many entries by x: [bins,3]."""
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return np.array([(x[part].mean(), y[part].mean(), len(part)) for part in parts if len(part)])


def calibration_error(curve) -> float:
    """The mean distance of a curve of binned(probability, event) from the diagonal, weighted by counts."""
    return float(np.average(np.abs(curve[:, 0] - curve[:, 1]), weights=curve[:, 2]))
