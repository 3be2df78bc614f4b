"""The original's loop of one text: what it would have said after a prompt, with the branch at every token."""

from typing import NamedTuple

import jax.numpy as jnp

from . import forward, static


class Step(NamedTuple):
    """A token, and what the sampler was handed: logits [1,1,V], scores [1,N,1,S] of the last layer over the cache."""

    decision: static.Decision
    logits: jnp.ndarray
    scores: jnp.ndarray

    @property
    def branch(self) -> str:
        return static.BRANCHES[self.decision.branch]


def generate(model, tokens, sampler, functions, max_new_tokens, gap=1, max_seq_len=4096):
    """(new ids, a Step to each but the first) after a prompt [1,T]. The first token is the likeliest, as it was.

    model, functions: as in ``forward.teacher_forced``; sampler: one of ``static.PUBLISHED``, or None for the likeliest
    token. It does not stop at a stop token."""
    T = tokens.shape[1]
    cache = forward.new_cache(model.config, 1, max_seq_len, model.weights.norm.dtype)
    logits, cache, _ = forward.xfmr(model.weights, model.config, tokens, 0, cache, functions)
    new, steps = [int(jnp.argmax(logits[0, -1]))], []
    for i in range(max_new_tokens - 1):
        ids = jnp.array([new[-1:]], jnp.int32)
        logits, cache, scores = forward.xfmr(model.weights, model.config, ids, T + gap + i, cache, functions)
        if sampler is None:
            decision = static.Decision(jnp.argmax(logits[:, -1], -1), 0)
        else:
            decision = sampler(new, logits, scores[-1])
        steps.append(Step(decision, logits, scores[-1]))
        new.append(int(decision.token[0]))
    return new, steps
