"""Choices among samples on made-up runs; a panel gives each sampler what it gives alone."""

import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.evaluation import (
    Panel,
    Run,
    best_of,
    chat_prompts,
    evaluate,
    majority,
    within_budget,
)

pytestmark = pytest.mark.in_haste
RNG = np.random.default_rng(2)


def made_up(p, n=200, k=4, rng=RNG):
    """A run whose samples pass with probability p [n], independently."""
    passed = rng.random((n, k)) < np.broadcast_to(p, n)[:, None]
    tokens = [[np.array([1, 2, 3, 1, 2, 3])] * k] * n
    return Run("x", [["a", "a", "b", "c"][:k]] * n, tokens, passed, np.full((n, k), 6), rng.random((n, k)))


def test_best_of_takes_the_likeliest_of_the_first():
    run = made_up(0.5)
    best = best_of(run, 3)
    assert (best.surprisal[:, 0] == run.surprisal[:, :3].min(1)).all() and best.passed.shape == (200, 1)
    rows = np.arange(200)
    assert (best.passed[:, 0] == run.passed[rows, run.surprisal[:, :3].argmin(1)]).all()


def test_best_of_a_number_for_each_task():
    run = made_up(0.5)
    n = RNG.integers(1, 5, 200)
    best = best_of(run, n)
    for i in range(200):
        assert best.surprisal[i, 0] == run.surprisal[i, : n[i]].min()


def test_budgets_are_met_to_half_an_answer():
    """Of all tasks together, whatever was spent on each: between the cheapest answer and all of them."""
    rng = np.random.default_rng(4)
    length = rng.integers(5, 21, (50, 8))
    run = Run("", [], [], None, length, None)
    spent = rng.integers(20, 90, 50)
    k = within_budget(run, spent)
    used = sum(length[i, : k[i]].sum() for i in range(50))
    assert abs(used - spent.sum()) <= 10 and k.min() >= 1 and k.max() <= 8 and len(set(k)) > 2
    assert within_budget(run, np.zeros(50)).tolist() == [1] * 50
    assert within_budget(run, np.full(50, 10**6)).tolist() == [8] * 50


def test_majority_counts_final_answers_and_breaks_ties_by_likelihood():
    number = lab.tasks.Task("How many?", "7", "number")
    word = lab.tasks.Task("What is the capital of Peru?", "Lima")
    texts = [
        ["3 + 4 = 7", "8", "so 7.", "9"],
        ["The capital is Cuzco.", "It is Lima", "Lima", "Peru"],
        ["1", "2", "3", "4"],
    ]
    surprisal = np.array([[2.0, 0.1, 1.0, 0.2], [0.1, 3.0, 2.0, 0.0], [0.4, 0.3, 0.2, 0.5]])
    blank = np.zeros((3, 4))
    run = Run("x", texts, texts, blank, blank, surprisal)
    assert [t for (t,) in majority(run, [number, word, number]).texts] == ["so 7.", "Lima", "3"]


def test_a_panel_gives_each_sampler_what_it_gives_alone(few_layers):
    tasks = lab.tasks.make_tasks(3)
    samplers = {"cold": lab.samplers.temperature(0.5), "adaptive": lab.samplers.adaptive()}
    together = evaluate(few_layers, tasks, samplers, samples=2, max_new_tokens=6, batch=5)
    assert [run.passed.shape for run in together.values()] == [(3, 2), (3, 2)]
    for name, sampler in samplers.items():
        alone = evaluate(few_layers, tasks, {name: sampler}, samples=2, max_new_tokens=6, batch=64)
        assert alone[name].texts == together[name].texts
    assert together["cold"].texts != together["adaptive"].texts
    info, drawn = together["adaptive"].info, together["adaptive"].tokens
    assert (together["cold"].info["branch"] == -1).all() and set(info["branch"]) <= set(range(5))
    first = np.array([*chat_prompts(few_layers, tasks)[0], *drawn[0][0]])
    trace = lab.trace_text(few_layers, first)[-len(drawn[0][0]) :]
    np.testing.assert_allclose(info["entropy"][: len(trace)], trace.entropy, atol=2e-3)
    assert Panel(tuple(samplers.values())).bind(few_layers.tokenizer).samplers[1].clarifying_id is not None
