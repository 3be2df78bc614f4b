import numpy as np
import pytest

from entropix_lab.evaluation import calibration as c


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, events = rng.integers(0, 6, 40), rng.random(40) < 0.4  # full of ties
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[events] for b in scores[~events]]
    assert c.auroc(scores, events) == pytest.approx(np.mean(pairs))
    assert c.auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1 and c.auroc([1, 1, 1, 1], [0, 0, 1, 1]) == 0.5
    assert np.isnan(c.auroc([1, 2], [1, 1]))


def test_interval_resamples_whole_texts():
    texts = np.repeat(np.random.default_rng(0).standard_normal((50, 1)), 200, axis=1)  # 200 copies add nothing
    value, low, high = c.interval(np.mean, (texts,), n=2000)
    assert value == pytest.approx(texts.mean()) and low < value < high
    assert (high - low) / 4 == pytest.approx(texts[:, 0].std() / 50**0.5, rel=0.1)


def test_calibration():
    p = np.random.default_rng(0).random(200_000)
    events = np.random.default_rng(1).random(200_000) < p
    curve = c.binned(p, events)
    assert curve[:, 2].sum() == len(p) and c.calibration_error(curve) < 0.01
    assert c.calibration_error(c.binned(p, events * 0)) == pytest.approx(0.5, abs=0.01)


def test_windows(demo):
    rows = c.windows(demo.tokenizer, 1000, 128)
    assert rows.shape == (8, 129) and len({tuple(row) for row in rows}) == 8
    assert (rows == c.windows(demo.tokenizer, 1000, 128)).all()
    with pytest.raises(ValueError, match="found"):
        c.windows(demo.tokenizer, 10**9)
