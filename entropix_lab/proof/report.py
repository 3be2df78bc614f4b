"""What a comparison found: a row for every tap, the first divergence in words, and one line of verdict."""

from dataclasses import asdict, dataclass

import numpy as np

from .. import verdict
from .taps import OPS, OUTER_OPS, full_name

RTOL, ATOL = 1e-3, 1e-2
VIEWS = ("accumulated", "local", "op")


@dataclass(frozen=True)
class View:
    """One tap in one view, ours against theirs: relative L2 errors of the positions, as (median, worst).

    floor: what rounding was seen to do. limit: what is still taken for rounding, a few times the floor. error_ratio:
    how many times further from float64 ours is than the other, at the (median, worst) position; 0 where that is not
    asked. limit_ratio: the error in units of the limit, or error_ratio in units of what it may be, the larger; above 1
    it is no rounding.
    """

    error: tuple[float, float]
    floor: tuple[float, float]
    limit: tuple[float, float]
    limit_ratio: float
    error_ratio: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Row:
    """One tap, in three views and, where the forward as it is used shows it, that beside its layers one by one (whole).

    own_layer: the local view ran on the other model's own values. missing_inputs: inputs that the op view could not
    take from it, named as in OPS. truth_ratio: how far both models lie from the float64 truth in units of what they
    may; above 1 the truth is wrong. meta_error and our_error are (median, worst) against the truth, accumulated and
    local; max_abs, cosine (the lowest) and worst_position, a (row, token) pair, are ours against theirs, accumulated.
    nan: whose values are no numbers.
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


# An argmax may differ where the margin is within this many times the noise of its two logits; the KL divergence of the
# worst position may be this many times that of correct variants, as the square of the factor for errors.
MARGIN, KL = 3, 36


@dataclass(frozen=True)
class Output:
    """The logits, ours against Meta's: the task's allclose, argmax agreement, KL(Meta || ours) in nats with the largest
    of correct variants (kl_floor), overlap of the five likeliest tokens; and wherever the argmax differs Meta's margin
    between the two tokens with what rounding does to their difference."""

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

    @property
    def faults(self) -> tuple[str, ...]:
        """In words, what of the distribution is no rounding."""
        pairs = zip(self.margins_where_different, self.noise_where_different, strict=True)
        wide = [margin for margin, noise in pairs if not margin <= MARGIN * noise]
        words = (f"{len(wide)} argmaxes differ by more than rounding (margin {max(wide):.2g})",) if wide else ()
        if not self.kl_max <= KL * self.kl_floor + 1e-9:
            words += (f"KL is {self.kl_max:.1e} nats where correct variants have {self.kl_floor:.1e}",)
        return words


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
        """The operations that differ by more than rounding on the other model's own inputs, the furthest first: where
        several are wrong at once, all of them are here, and none that only inherits an error. Operations with an input
        that has no tap are left out."""
        wrong = [row for row in self.rows if row.own_input and row.op.limit_ratio > 1]
        return tuple(sorted(wrong, key=lambda row: -row.op.limit_ratio))

    @property
    def truth_divergence(self) -> Row | None:
        """The first tap at which both models are far from the float64 truth, which then is wrong there."""
        return next((row for row in self.rows if row.truth_ratio > 1), None)

    @property
    def passed(self) -> bool:
        """The logits were compared, no tap differs by more than rounding, an argmax that differs is a tie within it,
        and the truth is where both models are. In float32 the task's allclose holds too (in bfloat16 Meta's own logits
        miss it against the truth)."""
        if self.first_divergence or self.truth_divergence or self.output is None or self.output.faults:
            return False
        return self.output.allclose or self.dtype == "bfloat16"

    @property
    def verdict(self) -> str:
        """One line of bounds and counts, PASS or FAIL first, stable enough to be committed."""
        out, yes = self.output, lambda b: "yes" if b else "no"
        within, total = sum(r.within_rounding for r in self.rows), self.expected or len(self.rows)
        missing = f" ({total - len(self.rows)} were not compared)" if total > len(self.rows) else ""
        claims = [f"{within} of {total} taps within rounding of {self.theirs}{missing}"]
        if out:
            close = f"allclose(rtol={RTOL:g}, atol={ATOL:g}) {yes(out.allclose)}"
            if self.dtype == "bfloat16":
                close += f" ({self.theirs} own bfloat16 against float64: {yes(out.meta_allclose_to_truth)})"
            claims += [
                f"logits within a relative {_bound(self['output'].rel_l2_worst)} at all {out.positions} positions",
                f"argmax equal at {out.argmax_equal}",
                *out.faults,
                close,
            ]
        else:
            claims.append("the logits were not compared: without output nothing passes")
        if self.truth_divergence:
            claims.append(f"the float64 truth is wrong at {self.truth_divergence.tap}")
        where = self.first_divergence
        claims.append("first divergence: " + (where.tap if where else "none"))
        return verdict.line(self.passed, f"{self.name} {self.dtype}", *claims)

    def explain(self) -> str:
        """The first divergence in words, and what else is wrong by itself."""
        row, lines = self.first_divergence, [self.note] if self.note else []
        if off := self.truth_divergence:
            lines.append(
                f"At {off.tap} both models are {off.truth_ratio:.3g} times further from the float64 truth than "
                "rounding explains: the truth is wrong there, or NumPy's products are. Nothing below can be trusted."
            )
        if row is None:
            top = max(self.rows, key=lambda r: r.limit_ratio)
            lines.append(
                f"No divergence: all {len(self.rows)} taps are within rounding in all views. The nearest to its limit "
                f"is {top.tap}, at {top.limit_ratio:.2f} of it."
            )
            if self.output is None:
                lines.append("The logits were not compared: without output nothing passes.")
            elif self.output.faults:
                lines.append("Of the logits by themselves: " + "; ".join(self.output.faults) + ".")
            elif not self.passed and not off:
                lines.append(f"Only allclose(rtol={RTOL:g}, atol={ATOL:g}) on the logits fails.")
            return "\n".join(lines)
        layer, op = split(row.tap)
        what, reads = (OPS | OUTER_OPS)[op]
        name = lambda r: full_name(layer, r) if r in OPS else r
        lines.append(f"First divergence: {row.tap}, {what}; it reads {' and '.join(map(name, reads))}.")
        lines.append(self._amount(row))
        if not row.own_input:
            missing = ", ".join(map(name, row.missing_inputs))
            lines.append(f"The error is made here or in what was not tapped: {missing} and whatever that reads.")
        elif row.op.limit_ratio > 1:
            lines.append("What it reads was the reference's own, so the error is made here.")
        others = [r for r in self.suspects if r is not row]
        if others:
            some = ", ".join(f"{r.tap} ({r.op.limit_ratio:.2g})" for r in others[:5])
            lines.append(
                f"{len(others)} more operations differ on the reference's own inputs (times their limit): {some}."
            )
        late = sum(r.accumulated.limit_ratio > 1 for r in self.rows)
        lines.append(
            f"In a run from the tokens on, {late} of {len(self.rows)} taps are beyond rounding; {row.tap} is furthest "
            f"at token {row.worst_position[1]} of row {row.worst_position[0]}."
        )
        return "\n".join(lines)

    def _amount(self, row) -> str:
        """How far a row is off, and in which view."""
        anew, whole = "on the reference's own input to this {}", "in a run from the tokens on"
        ways = (
            (row.op, anew.format("operation") if row.own_input else "on those of its inputs that the reference has"),
            (row.local, anew.format("layer") if row.own_layer else whole),
            (row.accumulated, whole),
        )
        if row.nan:
            return f"{row.nan.capitalize()} {'values are' if ' and ' in row.nan else 'has'} NaN there."
        found = next(((view, where) for view, where in ways if not view.limit_ratio <= 1), None)
        if found is None:
            return (
                "Layer by layer ours is the reference's, but the forward as it is used computes something else: "
                f"{_amount(row.whole.error)} away from its own layers, where rounding explains "
                f"{_amount(row.whole.floor)}."
            )
        view, where = found
        if row.tap.endswith(".scores") and np.isinf(view.error[1]):
            amount = "masked where the reference's is not, or the reverse: -inf is expected where a slot is not seen."
        elif any(not e <= at for e, at in zip(view.error, view.limit, strict=True)):
            amount = (
                f"{_amount(view.error)} from the reference's. Rounding explains {_amount(view.floor)}, the limit is "
                f"{_amount(view.limit)}: {view.limit_ratio:.3g} times too much."
            )
        else:
            amount = (
                f"{view.error_ratio[0]:.3g} times further from float64 than the reference is at the median position, "
                f"{view.error_ratio[1]:.3g} times at the worst."
            )
        return f"{where.capitalize()} ours is {amount}"

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
        return {
            "verdict": self.verdict,
            "explanation": self.explain(),
            "passed": self.passed,
            "environment": self.environment,
            "name": self.name,
            "dtype": self.dtype,
            "output": self.output and asdict(self.output),
            "rows": [asdict(row) | {"within_rounding": row.within_rounding} for row in self.rows],
        }

    def _repr_html_(self):
        """The stream after every layer and the output; a table of every tap is in to_json()."""
        bad = self.first_divergence
        shown = lambda r: r is bad or r.tap in OUTER_OPS or r.tap.count(".") == 1 and split(r.tap)[1] == ""
        cells = lambda r: [
            r.tap,
            *(
                f"{x:.1e}"
                for x in (*r.accumulated.error, r.meta_error[0], r.our_error[0], r.local.error[0], r.op.error[0])
            ),
            f"{r.limit_ratio:.2g}",
            "yes" if r.within_rounding else "<b>no</b>",
        ]
        titles = (
            "tap",
            "ours vs reference",
            "worst",
            "reference vs float64",
            "ours vs float64",
            "local",
            "op",
            "of limit",
        )
        body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in cells(r)) + "</tr>" for r in self.rows if shown(r))
        head = "".join(f"<th>{t}</th>" for t in (*titles, "rounding only"))
        explanation = self.explain().replace("\n", "<br>")
        return (
            f"<p>{self.verdict}</p><p>{explanation}</p><table><tr>{head}</tr>{body}</table>"
            f"<p><small>{self.environment}</small></p>"
        )


def split(tap: str) -> tuple[int | None, str]:
    """ "layers.3.attention.wq" -> (3, "attention.wq"); taps outside the layers have None."""
    if not tap.startswith("layers."):
        return None, tap
    i, _, op = tap.removeprefix("layers.").partition(".")
    return int(i), op


def _amount(error):
    return f"{error[0]:.1e} (median position) to {error[1]:.1e} (worst)"


def _bound(x: float) -> str:
    """The next power of ten: a figure that another processor's rounding seldom changes."""
    return f"{10.0 ** np.ceil(np.log10(max(x, 1e-300))):.0e}" if np.isfinite(x) else str(x)
