"""Branching: forks repeat and keep the best, groups change nothing, and without forks it is the sampler."""

import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.evaluation import chat_prompts

pytestmark = pytest.mark.in_haste


def test_forks_repeat_and_keep_the_best(few_layers):
    prompts = chat_prompts(few_layers, lab.tasks.make_tasks(3))
    options = dict(max_new_tokens=10, n=3, m=4, tied=0.5)
    rows = lab.branch(few_layers, prompts, seed=1, **options)
    assert [r.tokens for r in lab.branch(few_layers, prompts, seed=1, **options)] == [r.tokens for r in rows]
    assert [r.tokens for r in lab.branch(few_layers, prompts, seed=2, **options)] != [r.tokens for r in rows]
    forks = [fork for row in rows for fork in row.forks]
    assert forks and all(len(f.scores) == 3 and f.scores[f.chosen] == max(f.scores) for f in forks)
    for row in rows:
        assert 0 < len(row.tokens) <= 10 and len(row.logprobs) == len(row.tokens) and min(row.tokens) >= 0
        assert row.finished and row.spent >= len(row.tokens) and (row.spent > len(row.tokens)) == bool(row.forks)
        at = [f.position for f in row.forks]
        assert at == sorted(set(at))
        for fork in row.forks:  # what was kept stands in the text where the fork was
            assert few_layers.tokenizer.decode(row.tokens[fork.position :]).startswith(fork.texts[fork.chosen][:3])


def test_groups_and_the_samplers_state(few_layers):
    """A sampler that remembers, in groups of two, the last one partly idle: each row as if it were in one group."""
    prompts, dirichlet = chat_prompts(few_layers, lab.tasks.make_tasks(3)), lab.samplers.dirichlet()
    options = dict(max_new_tokens=6, sampler=dirichlet, n=2, m=3, tied=0.5)
    small, large = (lab.branch(few_layers, prompts, batch=b, **options) for b in (2, 4))
    assert [r.tokens for r in small] == [r.tokens for r in large] and any(r.forks for r in small)


def test_follows_a_sampler_that_is_no_pytree(few_layers):
    class Likeliest:
        def init(self, batch):
            return ()

        def __call__(self, logits, metrics, state, keys):
            return logits.argmax(-1).astype("int32"), state, {}

    prompts = chat_prompts(few_layers, lab.tasks.make_tasks(1))
    own, greedy = (lab.branch(few_layers, prompts, 4, s, n=2, m=2) for s in (Likeliest(), lab.samplers.greedy()))
    assert [r.tokens for r in own] == [r.tokens for r in greedy]


def test_without_forks_it_is_the_sampler(few_layers):
    prompts = chat_prompts(few_layers, lab.tasks.make_tasks(2))
    never = lab.samplers.adaptive(quadrants=())
    rows = lab.branch(few_layers, prompts, 8, lab.samplers.greedy(), thresholds=never, tied=0.0)
    expected = lab.generate(few_layers, prompts, 8, lab.samplers.greedy())
    assert [r.tokens for r in rows] == [g.tokens.tolist() for g in expected]
    assert all(r.spent == len(r.tokens) and not r.forks for r in rows)
    for row, gen in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row.logprobs, gen.logprobs, atol=1e-4)
