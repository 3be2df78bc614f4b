"""Comparisons in words: what was found, and of what was not found which effects are excluded."""


def lines(tests) -> str:
    """A line to each of {name: Paired}."""
    width = max(map(len, tests))
    return "\n".join(f"{name:<{width}} {c}" for name, c in tests.items())


def found(tests) -> dict:
    """{name: "better" | "worse"} of those of {name: Paired} whose p is below 0.05."""
    return {name: c.words().split()[0] for name, c in tests.items() if c.p < 0.05}


def said(tests) -> str:
    """{name: Paired} in sentences, with intervals, the excluded effects, and what a test of this size finds."""
    parts = []
    for name in found(tests):
        c = tests[name]
        low, high = sorted((abs(c.low), abs(c.high)))
        parts.append(f"**{name}: {c.words()}** ({low:.3f} to {high:.3f}, p {c.p:.3f}).")
    rest = {name: c for name, c in tests.items() if c.p >= 0.05}
    if rest:
        gains, losses = ({name: max(x(c), 0) for name, c in rest.items()} for x in (lambda c: c.high, lambda c: -c.low))
        sizes = {name: c.detectable for name, c in rest.items()}
        step = " at the first step of Holm's correction" if max(c.tests for c in rest.values()) > 1 else ""
        parts.append(
            f"**No difference found** for {listed(rest)}: gains above {between(gains)} and losses above "
            f"{between(losses)} are excluded; a difference of {between(sizes)} would be found four times in five{step}."
        )
    return " ".join([*parts, *singly(tests)])


def singly(tests) -> list[str]:
    """A sentence of those of {name: Paired} whose own interval lies beside 0 though the corrected p is not small."""
    parts, rest = [], {name: c for name, c in tests.items() if c.p >= 0.05}
    for side, beyond in (("below", lambda c: c.high < 0), ("above", lambda c: c.low > 0)):
        if some := [name for name, c in rest.items() if beyond(c)]:
            subject = f"The interval of {some[0]} lies" if len(some) == 1 else f"The intervals of {listed(some)} lie"
            p = listed([f"{rest[name].p:.3f}" for name in some])
            parts.append(f"{subject} {side} 0 taken singly; after the correction this is not significant (p {p}).")
    return parts


def brief(tests) -> str:
    """The same in one sentence, with the widest bounds of those of which nothing was found."""
    size = lambda c: "{:.3f} to {:.3f}".format(*sorted((abs(c.low), abs(c.high))))
    parts = [f"{name} is {c.words()} ({size(c)})" for name, c in tests.items() if c.p < 0.05]
    rest = [c for c in tests.values() if c.p >= 0.05]
    if rest:
        bounds = (
            f"gains above {max(0, *(c.high for c in rest)):.3f} and losses above {max(0, *(-c.low for c in rest)):.3f}"
        )
        names = [name for name, c in tests.items() if c.p >= 0.05]
        others = names[0] if len(rest) == 1 else f"the other {len(rest)}" if parts else f"any of {len(rest)}"
        parts.append(
            f"no difference is found for {others} ({bounds} are excluded{' for each' if len(rest) > 1 else ''})"
        )
    return "; ".join(parts) + "."


def listed(names) -> str:
    """ "a, b and c" """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def between(values) -> str:
    """The smallest and the largest of {name: value}, or the only one."""
    least, most = min(values, key=values.get), max(values, key=values.get)
    if len(values) == 1:
        return f"{values[least]:.3f}"
    return f"{values[least]:.3f} ({least}) to {values[most]:.3f} ({most})"


def span(triple, form=".2f") -> str:
    """(value, low, high) as "0.47 (0.44 to 0.50)"."""
    x, low, high = (f"{v:{form}}" for v in triple)
    return f"{x} ({low} to {high})"


def chance(triple) -> str:
    """On which side of 0.5 the interval of an AUROC lies."""
    _, low, high = triple
    return "above chance" if low > 0.5 else "below chance" if high < 0.5 else "not told from chance"
