"""Comparisons in words: what was found, and of what was not found which effects are excluded."""


def lines(tests) -> str:
    """A line to each of {name: Paired}."""
    width = max(map(len, tests))
    return "\n".join(f"{name:<{width}} {c}" for name, c in tests.items())


def found(tests) -> dict:
    """{name: "better" | "worse"} of those of {name: Paired} whose p is below 0.05."""
    return {name: "better" if c.difference > 0 else "worse" for name, c in tests.items() if c.p < 0.05}


def bounds(tests) -> tuple[float, float]:
    """Above which gain and which loss effects are excluded for every one of {name: Paired}, by its own interval."""
    return max(0, *(c.high for c in tests.values())), max(0, *(-c.low for c in tests.values()))


def said(tests) -> str:
    """{name: Paired} in sentences: what was found; of the rest what is excluded for all of them, and whose own interval
    lies beside 0 though the corrected p is not small."""
    size = lambda c: "{:.3f} to {:.3f}".format(*sorted((abs(c.low), abs(c.high))))
    of = lambda name: f"{abs(tests[name].difference):.3f} ({size(tests[name])})"
    parts = [f"{name} is {word} by {of(name)}" for name, word in found(tests).items()]
    if rest := {name: c for name, c in tests.items() if c.p >= 0.05}:
        others = next(iter(rest)) if len(rest) == 1 else f"the other {len(rest)}" if parts else f"any of {len(rest)}"
        excluded = "gains above {:.3f} and losses above {:.3f} are excluded".format(*bounds(rest))
        parts.append(f"no difference is found for {others} ({excluded}{' for each' if len(rest) > 1 else ''})")
    sentences = ["; ".join(parts) + "."]
    for side, beyond in (("below", lambda c: c.high < 0), ("above", lambda c: c.low > 0)):
        if some := [name for name, c in rest.items() if beyond(c)]:
            subject = f"The interval of {some[0]} lies" if len(some) == 1 else f"The intervals of {listed(some)} lie"
            p = listed([f"{rest[name].p:.3f}" for name in some])
            sentences.append(f"{subject} {side} 0 taken singly; after the correction this is not significant (p {p}).")
    return " ".join(sentences)


def listed(names) -> str:
    """ "a, b and c", or "none" """
    *most, last = [*names] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def span(triple, form=".2f") -> str:
    """(value, low, high) as "0.47 (0.44 to 0.50)"."""
    x, low, high = (f"{v:{form}}" for v in triple)
    return f"{x} ({low} to {high})"


def chance(triple) -> str:
    """On which side of 0.5 the interval of an AUROC lies."""
    _, low, high = triple
    return "above chance" if low > 0.5 else "below chance" if high < 0.5 else "not told from chance"
