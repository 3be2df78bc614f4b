"""Samplers: pure functions from logits to a token, one decision to a row, usable without the rest of this package.

A sampler is a frozen dataclass (hashable, so that jit can take it as static) with two methods:
    init(batch) -> state                               a pytree whose arrays have a row to each sequence, or ()
    __call__(logits, metrics, state, keys) -> (token, state, info)
logits [B,V] float32; metrics: dict of arrays [B,...], "entropy" and "varentropy" (nats) always among them; keys [B]
typed PRNG keys; token [B] int32; info: dict of arrays [B] that go into the trace.
"""

from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Greedy:
    def init(self, batch):
        return ()

    def __call__(self, logits, metrics, state, keys):
        return jnp.argmax(logits, -1).astype(jnp.int32), state, {}


def greedy() -> Greedy:
    """The likeliest token; of equal ones the one with the lowest id."""
    return Greedy()
