"""Do the metrics predict the model's mistakes? AUROC with intervals, calibration."""

import numpy as np

from .texts import windows as windows


def auroc(scores, events) -> float:
    """The probability that an event has a larger score than a non-event (ties count half): 0.5 is chance.

    scores and events (bool) [n]. By mid-ranks (Mann and Whitney). NaN where all events are alike.
    """
    from scipy import stats

    events = np.asarray(events, bool)
    n, m = events.sum(), (~events).sum()
    ranks = stats.rankdata(scores)
    return float((ranks[events].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def interval(statistic, texts, n: int = 400, seed: int = 0) -> tuple[float, float, float]:
    """(statistic of everything, 2.5 %, 97.5 %) by a bootstrap over whole texts: tokens of one text go together.

    texts: a tuple of arrays [texts, tokens], handed to statistic flattened.
    """
    from scipy import stats

    rows, rng = np.arange(len(texts[0])), np.random.default_rng(seed)
    flat = lambda rows: statistic(*(x[rows].ravel() for x in texts))
    found = stats.bootstrap((rows,), flat, n_resamples=n, vectorized=False, method="percentile", rng=rng)
    # a drawing in which all events are alike has no statistic
    return (flat(rows), *(float(q) for q in np.nanpercentile(found.bootstrap_distribution, [2.5, 97.5])))


def binned(x, y, bins: int = 12) -> np.ndarray:
    """Means of x and y, and counts, in bins of equally many entries by x: [bins,3]."""
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return np.array([(x[part].mean(), y[part].mean(), len(part)) for part in parts if len(part)])


def calibration_error(curve) -> float:
    """The mean distance of a curve of binned(probability, event) from the diagonal, weighted by counts."""
    return float(np.average(np.abs(curve[:, 0] - curve[:, 1]), weights=curve[:, 2]))
