"""What can be said about a difference. The unit is the task: samples and tokens of one task depend on each other, so
every interval and test resamples tasks."""

from dataclasses import dataclass, replace

import numpy as np

RESAMPLES, FLIPS = 4000, 100_000


def interval(values, seed=0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values [n,k] or [n], tasks resampled."""
    from scipy import stats

    per_task = np.asarray(values, float).reshape(len(values), -1).mean(1)
    rng = np.random.default_rng(seed)
    found = stats.bootstrap((per_task,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng)
    return tuple(map(float, found.confidence_interval))


def share(passed) -> tuple[float, float, float]:
    """The share of passed (bool [n]) and its 95 % interval (Wilson 1927), which also holds for few and for extreme."""
    from scipy import stats

    interval = stats.binomtest(int(np.sum(passed)), len(passed)).proportion_ci(method="wilson")
    return float(np.mean(passed)), float(interval.low), float(interval.high)


def resampled(n_tasks, n, seed=0) -> np.ndarray:
    """How often each task is drawn [1 + n, tasks]: once in the first row, at random in n resamplings."""
    drawn = np.random.default_rng(seed).multinomial(n_tasks, np.full(n_tasks, 1 / n_tasks), n)
    return np.concatenate([np.ones((1, n_tasks)), drawn])


def spread(values) -> tuple[float, float, float]:
    """The first of values, and the 2.5 % and 97.5 % points of the others, without those that are NaN."""
    return float(values[0]), *map(float, np.nanpercentile(values[1:], [2.5, 97.5]))


@dataclass(frozen=True)
class Paired:
    """The mean difference of accuracy, its 95 % interval, p of the sign-flip test, and detectable: the smallest
    difference that a test of this size finds four times in five (two-sided 5 %). tests: for how many p is corrected;
    detectable is then what is found at the first step of the correction. The interval is always that of one test."""

    difference: float
    low: float
    high: float
    p: float
    detectable: float
    tests: int = 1

    @property
    def said_p(self) -> str:
        """p in words; what is smaller than its last digit is said to be so, and 1 / FLIPS is."""
        return "p < 0.001" if self.p < 0.001 else f"p {self.p:.3f}"

    def __str__(self):
        bounds = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.difference:+.3f} {bounds}, {self.said_p}, detectable {self.detectable:.3f}"


def paired(a, b, seed=0) -> Paired:
    """a against b on the same tasks, each a Run or the share of each task's answers that passed [n]: the mean
    difference, bootstrap interval, and the permutation test that flips the sign of each task's difference."""
    from scipy import stats

    of = lambda x: x.passed.mean(1) if hasattr(x, "passed") else np.asarray(x, float)
    d = of(a) - of(b)
    return Paired(float(d.mean()), *interval(d, seed), sign_flip_p(d, seed), float(_errors(1) * stats.sem(d)))


def sign_flip_p(d, seed=0) -> float:
    """Two-sided p of the sum of d [n], by FLIPS drawings of all signs: the share of them whose sum is as far from 0, d
    itself counted with them, so that no p is below 1 / (FLIPS + 1). scipy's permutation_test takes 90 times as long."""
    d, rng = np.asarray(d, float), np.random.default_rng(seed)
    eights = np.pad(d, (0, -len(d) % 8)).reshape(-1, 8)  # the signs of eight are one random byte
    signs = 1.0 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    sums = sum((signs @ eight)[rng.integers(0, 256, FLIPS, np.uint8)] for eight in eights)
    as_far = ~(np.abs(sums) < np.abs(d.sum()) - 1e-9 * np.abs(d).sum())  # but for rounding; of NaN all are
    return float((1 + as_far.sum()) / (1 + FLIPS))


def _errors(tests) -> float:
    """How many standard errors a difference must have to be found in 80 % of the studies, two-sided 5 %, at the first
    step of Holm's correction for so many tests (which is Bonferroni's)."""
    from scipy import stats

    return float(stats.norm.ppf(1 - 0.025 / tests) + stats.norm.ppf(0.8))


def holm(p) -> np.ndarray:
    """p-values [n] corrected for there being n of them (Holm 1979): the k-th smallest times n - k + 1, never less than
    the one before it, at most 1."""
    p = np.asarray(p, float)
    order, corrected = np.argsort(p), np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def corrected(tests: dict) -> dict:
    """{name: Paired} of single tests, with p and detectable of each corrected for their number (Holm)."""
    p, n = holm([test.p for test in tests.values()]), len(tests)
    seen = lambda test: test.detectable * _errors(n) / _errors(1)
    both = zip(tests.items(), p, strict=True)
    return {name: replace(test, p=float(x), detectable=seen(test), tests=n) for (name, test), x in both}


@dataclass(frozen=True)
class Matched:
    """Plain sampling that is as surprising as a target: of each task a share of its accuracy at two temperatures.

    temperatures: the two between which it lies; share: of the second one; accuracy [n]: of each task; surprisal: of a
    token, nats."""

    temperatures: tuple[float, float]
    share: float
    accuracy: np.ndarray
    surprisal: float


def matched(curve, target: float) -> Matched:
    """Where on a curve of plain sampling the mean surprisal of a token is target. An answer at one of the two
    temperatures around it, drawn with these shares, is a sampler too: its tokens have this surprisal.

    curve: {temperature: Tallied}, in rising order. Raises ValueError for a target outside the curve."""
    temperatures = list(curve)
    surprisal = [curve[t].mean_surprisal for t in temperatures]
    if not surprisal[0] <= target <= surprisal[-1]:
        raise ValueError(f"surprisal {target:.3f} lies outside the curve, {surprisal[0]:.3f} to {surprisal[-1]:.3f}")
    i = min(int(np.searchsorted(surprisal, target, "right")) - 1, len(surprisal) - 2)
    cold, warm = (curve[t] for t in temperatures[i : i + 2])
    # of the answers a share is warm; their tokens weigh by their number
    excess = lambda run: run.surprisal.sum() / run.samples - target * run.tokens.sum() / run.samples
    share = float(np.clip(excess(cold) / (excess(cold) - excess(warm)), 0, 1))
    mix = lambda f: (1 - share) * f(cold) + share * f(warm)
    reached = mix(lambda run: run.surprisal.sum() / run.samples) / mix(lambda run: run.tokens.sum() / run.samples)
    both = tuple(temperatures[i : i + 2])
    return Matched(both, share, mix(lambda run: run.accuracy), float(reached))


def rematched(curve, run, n: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of run's accuracy less that of the plain sampling that matches it, by a bootstrap over tasks in
    which the share of the warmer neighbour is found anew in each drawing: the match is an estimate too."""
    cold, warm = (curve[t] for t in matched(curve, run.mean_surprisal).temperatures)
    tasks = len(run.passed)
    counts = resampled(tasks, n, seed)[1:]
    target = (counts @ run.surprisal) / (counts @ run.tokens)
    excess = [(counts @ x.surprisal - target * (counts @ x.tokens)) / x.samples for x in (cold, warm)]
    warmer = excess[0] / (excess[0] - excess[1])
    own, cool, hot = (counts @ x.accuracy / tasks for x in (run, cold, warm))
    low, high = np.percentile(own - (1 - warmer) * cool - warmer * hot, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Tallied:
    """A Run in numbers: of each task how many of its samples passed, their tokens, and their surprisal (nats), each
    summed over the samples, arrays [n]."""

    samples: int
    passed: np.ndarray
    tokens: np.ndarray
    surprisal: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        return self.passed / self.samples

    @property
    def mean_surprisal(self) -> float:
        """Of a token, nats."""
        return float(self.surprisal.sum() / self.tokens.sum())


def tallied(row: dict, first: int | None = None) -> Tallied:
    """The Tallied of a run as the benchmark keeps it, or of the first of its tasks."""
    return Tallied(row["samples"], *(np.array(row[name][:first], float) for name in ("passed", "tokens", "surprisal")))
