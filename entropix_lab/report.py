"""What a comparison found: a row for every tap, the first divergence in words, and one line of verdict."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from . import verdict
from .taps import OPS, OUTER_OPS, full_name

RTOL, ATOL = 1e-3, 1e-2
VIEWS = ("accumulated", "local", "op")


@dataclass(frozen=True)
class View:
    """One tap in one view, ours against theirs: relative L2 errors of the positions, as (median, worst).

    floor: what rounding was seen to do: the noise of correct variants and our own distance from float64, of an
    operation in any layer. limit: what is still taken for rounding, a few times the floor. further: how many times
    further from float64 than the other ours is at the median position, 0 where that is not asked. excess: the error in
    units of the limit, or what further has above 1 in units of what is allowed, the largest; above 1 it is no rounding.
    """

    error: tuple[float, float]
    floor: tuple[float, float]
    limit: tuple[float, float]
    excess: float
    further: float = 0.0


@dataclass(frozen=True)
class Row:
    """One tap. own_layer: the local view ran on the other model's own values. untapped: inputs that the op view could
    not take from it, named as in OPS; own_input: there are none. meta_error and our_error are (median, worst) against
    the float64 truth, accumulated and local; max_abs, cosine (the lowest) and worst_position, a (row, token) pair,
    are ours against theirs, accumulated."""

    tap: str
    accumulated: View
    local: View
    op: View
    own_layer: bool
    untapped: tuple[str, ...]
    meta_error: tuple[float, float]
    our_error: tuple[float, float]
    local_meta_error: tuple[float, float]
    local_our_error: tuple[float, float]
    max_abs: float
    cosine: float
    worst_position: tuple[int, int]

    @property
    def own_input(self) -> bool:
        return not self.untapped

    @property
    def rel_l2(self) -> float:
        """The median position's relative L2 error, ours against theirs."""
        return self.accumulated.error[0]

    @property
    def rel_l2_worst(self) -> float:
        return self.accumulated.error[1]

    @property
    def excess(self) -> float:
        """The largest of the three views' errors in units of its limit."""
        return max(self.accumulated.excess, self.local.excess, self.op.excess)

    @property
    def within_rounding(self) -> bool:
        return self.excess <= 1


@dataclass(frozen=True)
class Output:
    """The logits, ours against Meta's: the task's allclose, argmax agreement, KL(Meta || ours) in nats, overlap of the
    five likeliest tokens, and Meta's top-1 margin at every position where the argmax differs."""

    allclose: bool
    meta_allclose_to_truth: bool
    positions: int
    argmax_equal: int
    margins_where_different: tuple[float, ...]
    kl_mean: float
    kl_max: float
    top5_overlap: float


@dataclass(frozen=True, repr=False)
class Report:
    """What compare returns. theirs: whose taps ours were compared with, in the possessive."""

    name: str
    dtype: str
    rows: tuple[Row, ...]
    output: Output | None
    environment: str
    theirs: str = "Meta's"

    @property
    def first_divergence(self) -> Row | None:
        """The first tap, in the order of execution, that differs by more than rounding; all before it do not."""
        return next((row for row in self.rows if not row.within_rounding), None)

    @property
    def suspects(self) -> tuple[Row, ...]:
        """The operations that differ by more than rounding on the other model's own inputs, the furthest first: where
        several are wrong at once, all of them are here, and none that only inherits an error. Operations with an input
        that has no tap are left out."""
        wrong = [row for row in self.rows if row.own_input and row.op.excess > 1]
        return tuple(sorted(wrong, key=lambda row: -row.op.excess))

    @property
    def passed(self) -> bool:
        """No tap differs by more than rounding, the logits included: an argmax that differs is then a tie within it. In
        float32 the task's allclose holds too (in bfloat16 Meta's own logits miss it against the truth)."""
        if self.first_divergence is not None or self.output is None:
            return self.first_divergence is None
        return self.output.allclose or self.dtype == "bfloat16"

    @property
    def verdict(self) -> str:
        """One line of bounds and counts, PASS or FAIL first, stable enough to be committed."""
        out, yes = self.output, lambda b: "yes" if b else "no"
        claims = [
            f"{sum(r.within_rounding for r in self.rows)} of {len(self.rows)} taps within rounding of {self.theirs}"
        ]
        if out:
            close = f"allclose(rtol={RTOL:g}, atol={ATOL:g}) {yes(out.allclose)}"
            if self.dtype == "bfloat16":
                close += f" ({self.theirs} own bfloat16 against float64: {yes(out.meta_allclose_to_truth)})"
            claims += [
                f"logits within a relative {_bound(self['output'].rel_l2_worst)} at all {out.positions} positions",
                f"argmax equal at {out.argmax_equal}",
                close,
            ]
        where = self.first_divergence
        claims.append("first divergence: " + (where.tap if where else "none"))
        return verdict.line(self.passed, f"{self.name} {self.dtype}", *claims)

    def explain(self) -> str:
        """The first divergence in words, and what else is wrong by itself."""
        row = self.first_divergence
        if row is None:
            top = max(self.rows, key=lambda r: r.excess)
            alone = "" if self.passed else f" Only allclose(rtol={RTOL:g}, atol={ATOL:g}) on the logits fails."
            return (
                f"No divergence: all {len(self.rows)} taps are within rounding in all three views. The nearest to its "
                f"limit is {top.tap}, at {top.excess:.2f} of it.{alone}"
            )
        layer, op = split(row.tap)
        what, reads = (OPS | OUTER_OPS)[op]
        name = lambda r: full_name(layer, r) if r in OPS else r
        anew, whole = "on the reference's own input to this {}", "in a run from the tokens on"
        ways = (
            (row.op, anew.format("operation") if row.own_input else "on those of its inputs that the reference has"),
            (row.local, anew.format("layer") if row.own_layer else whole),
            (row.accumulated, whole),
        )
        view, where = next((view, where) for view, where in ways if not view.excess <= 1)
        if row.tap.endswith(".scores") and np.isinf(view.error[1]):
            amount = "masked where the reference's is not, or the reverse: -inf is expected where a slot is not seen."
        elif any(not e <= at for e, at in zip(view.error, view.limit, strict=True)):
            amount = (
                f"{_amount(view.error)} from the reference's. Rounding explains {_amount(view.floor)}, the limit is "
                f"{_amount(view.limit)}: {view.excess:.3g} times too much."
            )
        else:
            amount = f"{view.further:.3g} times further from float64 than the reference is."
        lines = [
            f"First divergence: {row.tap}, {what}; it reads {' and '.join(map(name, reads))}.",
            f"{where.capitalize()} ours is {amount}",
        ]
        if not row.own_input:
            untapped = ", ".join(map(name, row.untapped))
            lines.append(f"The error is made here or in what was not tapped: {untapped} and whatever that reads.")
        elif row.op.excess > 1:
            lines.append("What it reads was the reference's own, so the error is made here.")
        others = [r for r in self.suspects if r is not row]
        if others:
            some = ", ".join(f"{r.tap} ({r.op.excess:.2g})" for r in others[:5])
            lines.append(f"{len(others)} more operations are wrong by themselves, times their limit: {some}.")
        late = sum(r.accumulated.excess > 1 for r in self.rows)
        lines.append(
            f"In a run from the tokens on, {late} of {len(self.rows)} taps are beyond rounding; {row.tap} is furthest "
            f"at token {row.worst_position[1]} of row {row.worst_position[0]}."
        )
        return "\n".join(lines)

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
            f"{r.excess:.2g}",
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


class Decoded(NamedTuple):
    """One prompt: how many tokens both models decoded, the index of the first that differs (None where none does), and
    there the margin between the two likeliest logits and whether it lies within rounding."""

    tokens: int
    first: int | None = None
    margin: float = np.nan
    tie: bool = False


@dataclass(frozen=True, repr=False)
class Greedy:
    """Free-running greedy decoding by both models, a Decoded to each prompt."""

    name: str
    dtype: str
    rows: tuple[Decoded, ...]

    @property
    def passed(self) -> bool:
        return all(row.first is None or row.tie for row in self.rows)

    @property
    def verdict(self) -> str:
        equal = sum(row.first is None for row in self.rows)
        longest = max(row.tokens for row in self.rows)
        claims = [f"{equal} of {len(self.rows)} prompts equal to Meta's over {longest} tokens"]
        claims.append(f"{sum(row.tie for row in self.rows)} part at a tie within rounding")
        for i, row in enumerate(self.rows):
            if row.first is not None and not row.tie:
                claims.append(f"prompt {i} parts at token {row.first} where the margin is {row.margin:.1e}")
        return verdict.line(self.passed, f"{self.name} {self.dtype} greedy", *claims)

    def __repr__(self):
        return self.verdict


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
