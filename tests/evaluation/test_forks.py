"""Forks through the cache are the forks that whole prompts give, and what predicts them is counted right."""

import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab import evaluation
from entropix_lab.evaluation import chat_prompts, forks


def test_forks_are_what_the_whole_text_gives(few_layers):
    tasks, n = lab.tasks.make_tasks(3), 6
    found = forks.fork_every_token(few_layers, tasks, n, group=2, rows=5)  # groups and rows that do not come out even
    stops, decode = few_layers.tokenizer.stop_tokens, few_layers.tokenizer.decode
    prompts, starts, expected = chat_prompts(few_layers, tasks), [], []
    for prompt, f, answer in zip(prompts, found, lab.generate(few_layers, prompts, n), strict=True):
        assert f.tokens.tolist() == answer.tokens.tolist() and f.text == answer.text
        np.testing.assert_allclose(np.log(f.top_probability), answer.logprobs, atol=1e-3)
        starts += [[*f.tokens[:t].tolist(), int(f.second[t])] for t in range(len(f.tokens))]
        expected += [(prompt, text) for text in f.texts]
    going = [i for i, start in enumerate(starts) if start[-1] not in stops and len(start) < n]
    ends = lab.generate(few_layers, [[*expected[i][0], *starts[i]] for i in going], n)
    for i, end in zip(going, ends, strict=True):
        starts[i] = starts[i] + end.tokens.tolist()[: n - len(starts[i])]
    assert [decode([t for t in s if t not in stops]) for s in starts] == [text for _, text in expected]
    for task, f in zip(tasks, found, strict=True):
        assert (
            f.verdicts.tolist() == [task.passes(text) for text in f.texts]
            and (f.flips == (f.verdicts != f.passed)).all()
        )


def rows(n=40, T=10, seed=0):
    """Records of answers in which the entropy alone says where a flip is, and later tokens flip less."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        H = rng.random(T)
        flips = (H > 0.7).astype(int).tolist()
        other = {name: rng.random(T).tolist() for name in ("varentropy", "margin", "top_probability")}
        yield {"passed": i % 2 == 0, "flips": flips, "entropy": H.tolist(), **other}


def test_predictors_are_ranked():
    table = forks.token_aurocs(list(rows()), n=50)
    assert all(table["entropy"][view][0] == 1 for view in ("pooled", "within", "same place"))
    assert table["position"]["same place"][0] == 0.5
    for name in ("varentropy", "margin", "top-1", "position"):
        value, low, high = table[name]["pooled"]
        assert low < value < high and 0.4 < value < 0.6


def test_forks_after_the_right_word_are_left_out():
    fields = {"pieces": ["It", " is", " Par", "is", ".", "!"], "flips": [1, 0, 1, 1, 0, 0]}
    row, task = fields | {"passed": True}, lab.tasks.Task("Where?", "Paris")
    (cut,) = forks.before_right_word([row], [task])
    assert cut == {"pieces": ["It", " is", " Par", "is"], "flips": [1, 0, 1, 1], "passed": True}
    number = lab.tasks.Task("How many?", "2", "number")
    assert forks.before_right_word([row | {"passed": False}, row], [task, number]) == [row | {"passed": False}, row]


def test_flips_found_at_a_budget():
    answers = list(rows())
    share = np.mean([f for row in answers for f in row["flips"]])
    assert forks.found_at(answers, "entropy", share) == pytest.approx(1)
    assert forks.found_at(answers, "entropy", share / 2) == pytest.approx(0.5, abs=0.01)
    assert abs(forks.found_at(answers, "varentropy", 0.2) - 0.2) < 0.1
    one = {"flips": [1, 1], "entropy": [0.6, 1.0], "varentropy": [0, 0], "margin": [np.log(3), np.log(9)]}
    one |= {"top_probability": [0.75, 0.9]}
    assert forks.second_probability(one) == pytest.approx([0.25, 0.1])
    assert forks.found_at([one], "entropy", 0.5, np.array([0.25, 0.1])) == pytest.approx(0.1 / 0.35)


def test_intervals_are_those_of_tasks_drawn_again():
    """Counting each task as often as it was drawn is putting it so often into the list."""
    answers, n = list(rows(12)), 20
    drawn = evaluation.resampled(12, n)
    again = [[answers[i] for i in np.repeat(range(12), times)] for times in drawn.astype(int)]
    chances = lambda rows: np.concatenate([row["top_probability"] for row in rows])
    at = lambda rows, n=0: forks.found_at(rows, "varentropy", np.array([0.1, 0.4]), chances(rows), n)
    np.testing.assert_allclose(at(answers, n), [at(a) for a in again])
    tables = [forks.token_aurocs(a, 9)["margin"] for a in again]
    for view, expected in forks.token_aurocs(answers, n)["margin"].items():
        assert expected == pytest.approx(evaluation.spread([table[view][0] for table in tables])), view
    kinds = np.repeat(["a", "b", "c"], 4)
    both = zip(again, drawn.astype(int), strict=True)
    tables = [forks.answer_aurocs(a, kinds[np.repeat(range(12), times)], 9) for a, times in both]
    for view, expected in forks.answer_aurocs(answers, kinds, n)["mean margin"].items():
        assert expected == pytest.approx(evaluation.spread([table["mean margin"][view][0] for table in tables])), view


def test_comparing_within_groups_removes_their_difference():
    """Scores that say nothing but which group it is: one half inside the groups, far from it in all."""
    groups, task = np.repeat([0, 1], 500), np.arange(1000)
    events = np.random.default_rng(0).random(1000) < np.where(groups, 0.8, 0.2)
    one, (own, every) = np.ones((1, 1000)), (forks.pairs(groups, events, task, x) for x in (groups, 0 * groups))
    assert forks.among(own, one) == 0.5 and forks.among(every, one) > 0.75
    assert forks.among(every, one) == pytest.approx(lab.calibration.auroc(groups, events))
