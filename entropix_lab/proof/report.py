"""What a comparison found: a row for every tap, the logits by themselves, and whether it passed."""

from dataclasses import asdict, dataclass

from . import words

VIEWS = ("accumulated", "local", "op")


@dataclass(frozen=True)
class View:
    """One tap in one view, ours against theirs: relative L2 errors of the positions, as (median, worst).

    floor: the error that rounding makes, as measured. limit: the largest error that still counts as rounding, a few
    times the floor. error_ratio: our distance from float64 over the other model's, (median, worst); 0 where it is not
    asked. limit_ratio: the larger of error / limit and error_ratio / its limit; above 1 it is not rounding.
    """

    error: tuple[float, float]
    floor: tuple[float, float] = (0.0, 0.0)
    limit: tuple[float, float] = (0.0, 0.0)
    limit_ratio: float = float("inf")  # not judged yet
    error_ratio: tuple[float, float] = (0.0, 0.0)

    @property
    def error_over_limit(self) -> float:
        """The median's or the worst error in units of its limit, the larger."""
        return max(e / at for e, at in zip(self.error, self.limit, strict=True))


@dataclass(frozen=True)
class Row:
    """One tap in three views. whole: the compiled forward against its own layers run one by one, None for other taps.

    own_layer: the local view started from the other model's values. missing_inputs: the inputs of this op that the
    other model has no tap of, named as in OPS. truth_ratio: distance of both models from float64 over its limit; above
    1 the truth is wrong. meta_error, our_error: (median, worst) against float64, accumulated and local. max_abs, cosine
    (the lowest) and worst_position, a (row, token) pair: ours against theirs, accumulated, of scores what neither
    masks. nan: who has NaN, in words.
    """

    tap: str
    accumulated: View
    local: View
    op: View
    whole: View | None
    own_layer: bool
    missing_inputs: tuple[str, ...]
    truth_ratio: float
    meta_error: tuple[float, float]
    our_error: tuple[float, float]
    local_meta_error: tuple[float, float]
    local_our_error: tuple[float, float]
    max_abs: float
    cosine: float
    worst_position: tuple[int, int]
    nan: str

    @property
    def own_input(self) -> bool:
        return not self.missing_inputs

    @property
    def rel_l2(self) -> float:
        """The median position's relative L2 error, ours against theirs."""
        return self.accumulated.error[0]

    @property
    def rel_l2_worst(self) -> float:
        return self.accumulated.error[1]

    @property
    def limit_ratio(self) -> float:
        """The largest of the views' errors in units of its limit."""
        views = (self.accumulated, self.local, self.op, self.whole)
        return max(view.limit_ratio for view in views if view)

    @property
    def within_rounding(self) -> bool:
        return self.limit_ratio <= 1


RTOL, ATOL = 1e-3, 1e-2  # of the task's allclose on the logits
# An argmax may differ where the margin is within this many times the noise of its two logits; the KL divergence of the
# worst position may be this many times that of correct variants, as the square of the factor for errors.
MARGIN, KL = 3, 36


@dataclass(frozen=True)
class Output:
    """The logits, ours against Meta's: the task's allclose, argmax agreement, KL(Meta || ours) in nats with the largest
    of correct variants (kl_floor), overlap of the five likeliest tokens; and wherever the argmax differs Meta's margin
    between the two tokens with what rounding does to their difference. rtol, atol: of the allclose."""

    allclose: bool
    meta_allclose_to_truth: bool
    positions: int
    argmax_equal: int
    margins_where_different: tuple[float, ...]
    noise_where_different: tuple[float, ...]
    kl_mean: float
    kl_max: float
    kl_floor: float
    top5_overlap: float
    rtol: float = RTOL
    atol: float = ATOL

    @property
    def margins_too_large(self) -> tuple[float, ...]:
        """The margins of argmaxes that differ and are no ties."""
        pairs = zip(self.margins_where_different, self.noise_where_different, strict=True)
        return tuple(margin for margin, noise in pairs if not margin <= MARGIN * noise)

    @property
    def kl_too_large(self) -> bool:
        return not self.kl_max <= KL * self.kl_floor + 1e-9

    faults = property(words.faults_of)


@dataclass(frozen=True, repr=False)
class Report:
    """What compare returns. theirs: whose taps ours were compared with, in the possessive; expected: how many taps a
    complete comparison has; note: what is known of the tokens."""

    name: str
    dtype: str
    rows: tuple[Row, ...]
    output: Output | None
    environment: str
    theirs: str = "Meta's"
    expected: int = 0
    note: str = ""

    @property
    def first_divergence(self) -> Row | None:
        """The first tap, in the order of execution, that differs by more than rounding; all before it do not."""
        return next((row for row in self.rows if not row.within_rounding), None)

    @property
    def suspects(self) -> tuple[Row, ...]:
        """All operations that are wrong by themselves, the furthest first: on the other model's own inputs they differ
        by more than rounding. An operation that only inherits an error is not here, nor one that lacks an input."""
        wrong = [row for row in self.rows if row.own_input and row.op.limit_ratio > 1]
        return tuple(sorted(wrong, key=lambda row: -row.op.limit_ratio))

    @property
    def truth_divergence(self) -> Row | None:
        """The first tap at which both models are far from float64: the truth is wrong there."""
        return next((row for row in self.rows if row.truth_ratio > 1), None)

    @property
    def passed(self) -> bool:
        """The logits were compared, no tap differs by more than rounding, an argmax that differs is a tie within it,
        and the truth is where both models are. In float32 the task's allclose holds too (in bfloat16 Meta's own logits
        miss it against the truth)."""
        if self.first_divergence or self.truth_divergence or self.output is None or self.output.faults:
            return False
        return self.output.allclose or self.dtype == "bfloat16"

    verdict = property(words.verdict_of)
    explain = words.explain
    _repr_html_ = words.html

    def __getitem__(self, tap: str) -> Row:
        row = next((row for row in self.rows if row.tap == tap), None)
        if row is None:
            raise KeyError(
                f"no tap {tap!r} in this report: its names are like {self.rows[min(1, len(self.rows) - 1)].tap!r}"
            )
        return row

    def __repr__(self):
        return self.verdict

    def to_json(self) -> dict:
        """Everything in the report, as plain types."""
        said = {"verdict": self.verdict, "explanation": self.explain(), "passed": self.passed}
        rows = [asdict(row) | {"within_rounding": row.within_rounding} for row in self.rows]
        return said | asdict(self) | {"rows": rows}
