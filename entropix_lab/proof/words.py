"""A Report in words: the line of verdict, the explanation, and the table in a notebook."""

import numpy as np

from .. import verdict
from .taps import OPS, OUTER_OPS, full_name, split


def verdict_of(report) -> str:
    """One line of bounds and counts, PASS or FAIL first, stable enough to be committed."""
    out, yes = report.output, lambda b: "yes" if b else "no"
    within, total = sum(r.within_rounding for r in report.rows), report.expected or len(report.rows)
    missing = f" ({total - len(report.rows)} were not compared)" if total > len(report.rows) else ""
    claims = [f"{within} of {total} taps within rounding of {report.theirs}{missing}"]
    if out:
        close = f"allclose(rtol={out.rtol:g}, atol={out.atol:g}) {yes(out.allclose)}"
        if report.dtype == "bfloat16":
            close += f" ({report.theirs} own bfloat16 against float64: {yes(out.meta_allclose_to_truth)})"
        claims += [
            f"logits within a relative {_bound(report['output'].rel_l2_worst)} at all {out.positions} positions",
            f"argmax equal at {out.argmax_equal}",
            *out.faults,
            close,
        ]
    else:
        claims.append("the logits were not compared: without output nothing passes")
    if report.truth_divergence:
        claims.append(f"the float64 truth is wrong at {report.truth_divergence.tap}")
    where = report.first_divergence
    claims.append("first divergence: " + (where.tap if where else "none"))
    return verdict.line(report.passed, f"{report.name} {report.dtype}", *claims)


def faults_of(output) -> tuple[str, ...]:
    """What is wrong with the logits by themselves: argmaxes that are no ties, a KL above that of correct variants."""
    found = ()
    if wide := output.margins_too_large:
        found += (f"{len(wide)} argmaxes differ by more than rounding (margin {max(wide):.2g})",)
    if output.kl_too_large:
        found += (f"KL is {output.kl_max:.1e} nats where correct variants have {output.kl_floor:.1e}",)
    return found


def explain(report) -> str:
    """The first divergence in words, and what else is wrong by itself."""
    row, lines = report.first_divergence, [report.note] if report.note else []
    if off := report.truth_divergence:
        lines.append(
            f"At {off.tap} both models are {off.truth_ratio:.3g} times further from the float64 truth than "
            "rounding explains: the truth is wrong there, or NumPy's products are. Nothing below can be trusted."
        )
    if row is None:
        top = max(report.rows, key=lambda r: r.limit_ratio)
        lines.append(
            f"No divergence: all {len(report.rows)} taps are within rounding in all views. The nearest to its limit "
            f"is {top.tap}, at {top.limit_ratio:.2f} of it."
        )
        if report.output is None:
            lines.append("The logits were not compared: without output nothing passes.")
        elif report.output.faults:
            lines.append("Of the logits by themselves: " + "; ".join(report.output.faults) + ".")
        elif not report.passed and not off:
            out = report.output
            lines.append(f"Only allclose(rtol={out.rtol:g}, atol={out.atol:g}) on the logits fails.")
        return "\n".join(lines)
    layer, op = split(row.tap)
    what, reads = (OPS | OUTER_OPS)[op]
    name = lambda r: full_name(layer, r) if r in OPS else r
    lines.append(f"First divergence: {row.tap}, {what}; it reads {' and '.join(map(name, reads))}.")
    lines.append(_distance(row))
    if not row.own_input:
        missing = ", ".join(map(name, row.missing_inputs))
        lines.append(f"The error is made here or in what was not tapped: {missing} and whatever that reads.")
    elif row.op.limit_ratio > 1:
        lines.append("What it reads was the reference's own, so the error is made here.")
    others = [r for r in report.suspects if r is not row]
    if others:
        some = ", ".join(f"{r.tap} ({r.op.limit_ratio:.2g})" for r in others[:5])
        which = ", the five largest" if len(others) > 5 else ""
        lines.append(
            f"{len(others)} more operations are wrong on the reference's own inputs (error over limit{which}): {some}."
        )
    late = sum(r.accumulated.limit_ratio > 1 for r in report.rows)
    lines.append(
        f"In a run from the tokens on, {late} of {len(report.rows)} taps are beyond rounding; {row.tap} is furthest "
        f"at token {row.worst_position[1]} of row {row.worst_position[0]}."
    )
    return "\n".join(lines)


def _distance(row) -> str:
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
            "Layer by layer ours agrees with the reference. The compiled forward does not agree with its own layers: "
            f"they are {_amount(row.whole.error)} apart. Rounding explains {_amount(row.whole.floor)}."
        )
    view, where = found
    if row.tap.endswith(".scores") and np.isinf(view.error[1]):
        amount = "masked where the reference's is not, or the reverse: -inf is expected where a slot is not seen."
    elif any(not e <= at for e, at in zip(view.error, view.limit, strict=True)):
        amount = (
            f"{_amount(view.error)} from the reference's. Rounding explains {_amount(view.floor)}, the limit is "
            f"{_amount(view.limit)}; the error is {_times(view.error_over_limit)} its limit."
        )
    else:
        amount = (
            f"{_times(view.error_ratio[0])} further from float64 than the reference is at the median position, "
            f"{_times(view.error_ratio[1])} at the worst."
        )
    return f"{where.capitalize()} ours is {amount}"


def html(report) -> str:
    """The stream after every layer and the output; a table of every tap is in to_json()."""
    bad = report.first_divergence
    shown = lambda r: r is bad or r.tap in OUTER_OPS or r.tap.count(".") == 1 and split(r.tap)[1] == ""
    cells = lambda r: [
        r.tap,
        *(f"{x:.1e}" for x in (*r.accumulated.error, r.meta_error[0], r.our_error[0], r.local.error[0], r.op.error[0])),
        f"{r.limit_ratio:.2g}",
        "yes" if r.within_rounding else "<b>no</b>",
    ]
    titles = "tap|ours vs reference|worst|reference vs float64|ours vs float64|local|op|of limit|rounding only".split(
        "|"
    )
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in cells(r)) + "</tr>" for r in report.rows if shown(r))
    head = "".join(f"<th>{t}</th>" for t in titles)
    explanation = explain(report).replace("\n", "<br>")
    return (
        f"<p>{verdict_of(report)}</p><p>{explanation}</p><table><tr>{head}</tr>{body}</table>"
        f"<p><small>{report.environment}</small></p>"
    )


def _amount(error):
    return f"{error[0]:.1e} (median position) to {error[1]:.1e} (worst)"


def _times(x: float) -> str:
    return f"{x:,.0f} times" if x >= 100 else f"{x:.3g} times"


def _bound(x: float) -> str:
    """The next power of ten: a figure that another processor's rounding seldom changes."""
    return f"{10.0 ** np.ceil(np.log10(max(x, 1e-300))):.0e}" if np.isfinite(x) else str(x)
