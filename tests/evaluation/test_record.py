"""A made-up record is read as it was written, compared as it should be, and put into words that its numbers carry."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest

from entropix_lab.evaluation import Paired, corrected, matched, paired, read_record, rematched, tallied, words

RNG = np.random.default_rng(5)


def row(accuracy, surprisal, n=40, k=2, part="test", rng=RNG, varies=0.3):
    passed, tokens = rng.binomial(k, accuracy, n), np.full(n, 10 * k)
    return {"part": part, "samples": k, "passed": passed.tolist(), "tokens": tokens.tolist()} | {
        "surprisal": (tokens * surprisal * rng.lognormal(-(varies**2) / 2, varies, n)).tolist()
    }


@pytest.fixture
def file(tmp_path):
    runs = {"greedy": row(0.5, 0.5, k=1)} | {f"T {t}": row(0.5 - t / 4, 0.5 + t) for t in (0.2, 0.7, 1.0)}
    runs |= {"top-p 0.9": row(0.4, 1.1), "top-p 0.5": row(0.45, 0.8, 60), "branching": row(0.5, 0.2, k=1)}
    runs |= {f"tuning {name}": row(0.4, 1, 12, part="tuning") for name in ("T 0.2", "top-p 0.5", "slope 0.5 T 0.2")}
    kinds = {"test": ["hard", "easy"] * 20, "tuning": ["easy"] * 12}
    head = {"settings": {"seed": 0}, "environment": "here", "seconds": 1800.0, "kinds": kinds}
    study = head | {"tuned": {"T": "T 0.2", "top-p": "top-p 0.5"}, "slope temperatures": {"0.5": 0.2}, "runs": runs}
    answers = [{"passed": i % 2 == 0, "flips": [0, 1]} for i in range(40)]
    (tmp_path / "x.json").write_text(json.dumps(study))
    (tmp_path / "x_forks.json").write_text(json.dumps(head | {"tasks": answers}))
    return tmp_path / "x.json"


def test_a_record_is_read_on_tasks_that_all_runs_have(file):
    record = read_record(file)
    assert record.n == 40 == len(record.runs["top-p 0.5"].passed) and record.hours == 1 and record.heats == {0.5: 0.2}
    assert list(record.curve) == [0, 0.2, 0.7, 1.0] and record.curve[0.2] is record.runs["T 0.2"]
    assert list(record.settings_of("top-p")) == ["0.5"] and list(record.settings_of("T")) == ["0.2"]
    ((line, difference),) = record.against_curve(["top-p 0.9", "branching"]).values()  # branching strays too little
    assert line.temperatures == (0.2, 0.7)
    assert line.surprisal == pytest.approx(record.runs["top-p 0.9"].mean_surprisal)
    own = record.runs["top-p 0.9"].accuracy
    assert difference.difference == pytest.approx((own - line.accuracy).mean())
    assert record.off_curve(["top-p 0.9"])["top-p 0.9"].tolist() == (own - line.accuracy).tolist()
    assert list(record.differences([("top-p 0.9", "greedy")])) == ["top-p 0.9 against greedy"]
    easy = record.only(["easy"])
    assert easy.n == 20 and easy.runs["top-p 0.9"].accuracy.tolist() == own[1::2].tolist()
    assert easy.answers == record.answers[1::2] and set(easy.kinds) == {"easy"}


def test_what_is_missing_is_named(file):
    study = json.loads(file.read_text())
    for gone, expected in (("branching", "branching"), ("top-p 0.5", "top-p 0.5")):
        left = {name: run for name, run in study["runs"].items() if name != gone}
        file.write_text(json.dumps(study | {"runs": left}))
        with pytest.raises(ValueError, match=f"no run {expected}: .*--name x"):
            read_record(file)
    (file.parent / "x_forks.json").unlink()
    with pytest.raises(ValueError, match="x_forks.json does not exist"):
        read_record(file)


def test_matching_again_is_as_wide_as_the_difference_really_varies():
    """Many studies of the same true sampler; its surprisal varies much by task, which the fixed match does not know."""
    differences, widths, rng = [], [], np.random.default_rng(0)
    for seed in range(60):
        cold, warm, run = (tallied(row(*x, 100, 2, rng=rng, varies=1)) for x in ((0.9, 0.4), (0.1, 1.6), (0.5, 1.0)))
        curve = {0.5: cold, 1.0: warm}
        differences.append(paired(run.accuracy, matched(curve, run.mean_surprisal).accuracy).difference)
        low, high = rematched(curve, run, 400, seed)
        widths.append(high - low)
    assert np.mean(widths) / 3.92 == pytest.approx(np.std(differences), rel=0.25)


def test_said_names_what_was_found_and_what_is_excluded():
    tests = {"a": Paired(0.05, 0.02, 0.08, 0.001, 0.04), "b": Paired(-0.02, -0.05, 0.01, 0.2, 0.05)}
    tests["c"] = Paired(-0.03, -0.06, -0.002, 0.04, 0.04)
    tests = corrected(tests)
    assert [round(c.p, 3) for c in tests.values()] == [0.003, 0.2, 0.08] and words.found(tests) == {"a": "better"}
    assert [round(c.detectable, 3) for c in tests.values()] == [0.046, 0.058, 0.046]  # z(1 - 0.025 / 3) = 2.394
    assert words.said(tests) == (
        "a is better by 0.050 (0.020 to 0.080); no difference is found for the other 2 "
        "(gains above 0.010 and losses above 0.060 are excluded for each). "
        "The interval of c lies below 0 taken singly; after the correction this is not significant (p 0.080)."
    )
    assert words.said({"b": tests["b"]}) == (
        "no difference is found for b (gains above 0.010 and losses above 0.050 are excluded)."
    )
    assert [words.listed(x) for x in (iter(()), ["a"], map(str, "abc"))] == ["none", "a", "a, b and c"]
    assert words.chance((0.6, 0.51, 0.7)) == "above chance" and words.chance((0.5, 0.4, 0.6)) == "not told from chance"


def test_the_notebook_says_first_what_its_record_gives():
    """The findings of 12's recap are made of the record; its first cell has each word for word, numbers included."""
    cells = nbformat.read(Path(__file__).parents[2] / "notebooks" / "12_does_it_help.ipynb", 4).cells
    recap = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Recap"))
    shown = (output for cell in cells[recap:] for output in cell.get("outputs", ()))
    given = next(shown)["data"]["text/markdown"].strip().removeprefix("- ").split("\n- ")
    assert len(given) == 4 and all(any(c.isdigit() for c in sentence) for sentence in given)
    assert [sentence.strip() for sentence in given if sentence.strip() not in cells[0].source] == []
