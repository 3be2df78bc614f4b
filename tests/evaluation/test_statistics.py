"""Intervals cover, tests hold their level, and what is called matched is: all on made-up numbers."""

import numpy as np
import pytest
from scipy import stats

from entropix_lab.evaluation import Paired, Tallied, holm, interval, matched, paired, resampled, spread
from entropix_lab.evaluation.statistics import FLIPS, sign_flip_p


def shares(p, n=200, k=4, seed=0):
    """Of each of n tasks the share of k answers that passed, each with probability p."""
    return np.random.default_rng(seed).binomial(k, np.broadcast_to(p, n)) / k


def test_intervals_cover():
    covered = [low <= 0.3 <= high for low, high in (interval(shares(0.3, 60, seed=i), i) for i in range(100))]
    assert 86 <= sum(covered) <= 100


def test_paired_test_holds_its_level_and_finds_what_it_says_it_can():
    rng = np.random.default_rng(3)
    p = rng.random(100)
    same = [paired(shares(p, 100, 2, rng), shares(p, 100, 2, rng)) for _ in range(100)]
    assert sum(t.p < 0.05 for t in same) <= 12
    effect = np.mean([t.detectable for t in same])
    up, down = np.clip(p + effect / 2, 0, 1), np.clip(p - effect / 2, 0, 1)
    power = sum(paired(shares(up, 100, 2, rng), shares(down, 100, 2, rng)).p < 0.05 for _ in range(100))
    assert 60 <= power <= 95
    assert paired(p, p).difference == 0 and paired(p, p).p == 1


@pytest.mark.parametrize("n", [5, 8, 11])
def test_sign_flips_are_scipys_over_all_of_them(n):
    """Ties, as shares of a few answers make them, count as being as far."""
    rng = np.random.default_rng(n)
    for shift in (0, 1, 2):
        d = (rng.integers(-2, 3, n) + shift) / 4
        exact = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip_p(d) == pytest.approx(exact, abs=4 * (0.25 / FLIPS) ** 0.5)


def test_no_p_is_below_one_in_the_flips():
    assert sign_flip_p(np.ones(100)) == 1 / (FLIPS + 1)
    assert Paired(1, 1, 1, 13 / FLIPS, 0).said_p == "p < 0.001" and Paired(1, 1, 1, 0.0126, 0).said_p == "p 0.013"


def test_tokens_of_one_task_go_together():
    of_task, counts = np.random.default_rng(0).standard_normal(50), resampled(50, 2000)
    tokens = np.repeat(counts, 40, 1)  # 40 copies of each add nothing
    value, low, high = spread(tokens @ np.repeat(of_task, 40) / tokens.sum(1))
    assert value == pytest.approx(of_task.mean())
    assert (high - low) / 4 == pytest.approx(of_task.std() / 50**0.5, rel=0.1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1]) and holm([0.02]) == pytest.approx([0.02])


def tally(accuracy, surprisal, tokens=10, n=50, k=4):
    passed = np.full(n, accuracy * k)
    return Tallied(k, passed, np.full(n, tokens * k), np.full(n, surprisal * tokens * k))


class TestMatched:
    CURVE = {0.5: tally(0.5, 0.6), 0.8: tally(0.4, 1.0), 1.0: tally(0.2, 2.0, tokens=20)}

    def test_lies_between_its_neighbours(self):
        found = matched(self.CURVE, 0.8)
        assert found.temperatures == (0.5, 0.8) and found.share == pytest.approx(0.5)
        assert found.accuracy == pytest.approx(np.full(50, 0.45)) and found.surprisal == pytest.approx(0.8)

    def test_answers_of_unequal_length(self):
        """Half of the answers warm: 10 tokens of 1 nat and 20 of 2 make 50 nats to 30 tokens."""
        found = matched(self.CURVE, 50 / 30)
        assert found.share == pytest.approx(0.5) and found.surprisal == pytest.approx(50 / 30)

    def test_never_outside(self):
        for target in (0.5, 2.1):
            with pytest.raises(ValueError, match="outside the curve, 0.600 to 2.000"):
                matched(self.CURVE, target)
        assert matched(self.CURVE, 2.0).share == pytest.approx(1)
