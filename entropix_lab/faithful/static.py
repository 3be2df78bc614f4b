"""The static samplers of revisions cceeb84 (2024-10-07) and 9d41be6 (2024-10-31), bug for bug, with their numbers.

Entropies in bits, as published. Both know one row alone, and both draw with one and the same key at every call unless
they are handed another.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..compiler import EXACT

BRANCHES = ("LELV", "HELV", "LEHV", "HEHV", "adaptive")
LN2 = 0.69314718056
KEY = 1337


class Metrics(NamedTuple):
    """H, V of the logits (bits, bits^2), hA, vA of the attention: mean over heads of its entropy, and variance over
    heads of that; agreement and interaction as the original calls them. Scalars: everything is averaged."""

    H: jax.Array
    V: jax.Array
    hA: jax.Array
    vA: jax.Array
    agreement: jax.Array
    interaction: jax.Array  # [B], the one that is not averaged over the batch


class Decision(NamedTuple):
    """token [1]; branch: index into BRANCHES; the parameters that were handed to the draw, None where there was none;
    candidates [5] of the adaptive branch."""

    token: jax.Array
    branch: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    candidates: jax.Array | None = None


@jax.jit  # as one program, as the original's: in bfloat16 that is another rounding
def _of_logits(logits):
    log_p = jax.nn.log_softmax(logits, -1)
    p = jnp.exp(log_p)
    H = -jnp.sum(p * log_p, -1) / LN2
    return H, jnp.sum(p * (log_p / LN2 + H[..., None]) ** 2, -1)


@partial(jax.jit, compiler_options=EXACT)  # bfloat16 is rounded as op by op, without ten programs a size
def _of_attention(scores):
    attention = jax.nn.softmax(scores, -1)
    by_head = -jnp.sum(attention * jnp.log2(jnp.clip(attention, 1e-10, 1.0)), -1)
    apart = jnp.abs(attention - jnp.mean(attention, 1)[:, None])
    interaction = jnp.mean(jnp.abs(scores), (1, 2, 3))
    return *map(jnp.mean, (by_head, jnp.var(by_head, axis=1), jnp.mean(apart, (1, 2)))), interaction


def measure(logits, scores) -> Metrics:
    """The metrics of logits [B,Q,V] and the scores [B,N,Q,S] of one layer before the softmax, in the logits' dtype.

    The original hands in the last layer's scores over the whole cache: empty slots count as scores of 0. "agreement"
    is a mean absolute difference, which is at most 2/S and grows as heads disagree. Not to be called under jit."""
    return Metrics(*map(jnp.mean, _of_logits(logits)), *_of_attention(scores))


def filtered_cceeb84(z, temperature, top_p, top_k):
    """The probabilities that a token is drawn from, ascending, and their ids: logits z [1,V] -> [1,top_k] twice.

    The nucleus is walked from the smallest of the top_k up, so what it cuts are the likeliest tokens."""
    top, ids = jax.lax.top_k(jax.nn.softmax(z / temperature, -1), top_k)
    return _nucleus(jnp.flip(top, -1), top_p), jnp.flip(ids, -1)


def filtered_9d41be6(z, temperature, top_p, top_k):
    """The same among the 256 likeliest, those beyond top_k with probability 0; of equal tokens the higher id counts as
    the likelier."""
    probs = jax.nn.softmax(z / temperature, -1)
    ordered, ids = jax.lax.sort_key_val(probs, jax.lax.broadcasted_iota(jnp.int32, probs.shape, 1))
    kept = jnp.arange(256)[::-1] < top_k
    return _nucleus(jnp.where(kept, ordered[:, -256:], 0.0), top_p), ids[:, -256:]


def _nucleus(ascending, top_p):
    below = jnp.cumsum(ascending, -1) - ascending
    kept = jnp.where(below > top_p, 0.0, ascending)
    return kept / jnp.sum(kept, -1, keepdims=True)


def draw(filtered, z, temperature, top_p, top_k, key):
    """A token [1] from what filtered leaves of logits z [1,V]. min_p has no part in it: the original masks a copy of
    the logits with it and draws from another."""
    probs, ids = filtered(z, temperature, top_p, top_k)
    index = jnp.argmax(probs / jax.random.exponential(key, probs.shape), -1)
    return ids[0, index].astype(jnp.int32)


class _Static:
    def __call__(self, tokens, logits, scores, key=None) -> Decision:
        """The Decision after the tokens [n] generated so far, from logits [1,Q,V] and scores [1,N,Q,S].

        key: None for the original's own, PRNGKey(1337) every time. Raises ValueError for more than one row, with which
        the original raises an error of shapes or answers for the first row."""
        if len(logits) != 1:
            raise ValueError(f"the original samples one row at a time, found logits of {logits.shape}")
        key = jax.random.PRNGKey(KEY) if key is None else key
        m, z = measure(logits, scores), logits[:, -1]
        branch = self.branch(m)
        if branch == 0:
            return Decision(jnp.argmax(z, -1).astype(jnp.int32), branch)
        if branch == 1 and self.asks(tokens):
            return Decision(jnp.array([self.clarifying], jnp.int32), branch)
        parameters = self.parameters(branch, m, z)
        T, top_p, top_k, min_p = parameters
        if branch < 4:
            return Decision(draw(self.filtered, z, T, top_p, top_k, key), branch, *parameters)
        drawn = [draw(self.filtered, z, T, top_p, top_k, k) for k in jax.random.split(key, self.candidates)]
        drawn = jnp.concatenate(drawn)
        # each is scored by its log-probability and a "confidence" that is the same for all
        best = jnp.argmax(jax.nn.log_softmax(z)[0, drawn] + self.confidence(m))
        return Decision(drawn[best][None], branch, *parameters, drawn)


@dataclass(frozen=True)
class Cceeb84(_Static):
    """Revision cceeb84: the first with its numbers in a config."""

    temperature: float = 0.666
    top_p: float = 0.90
    top_k: int = 27
    min_p: float = 0.03
    low_entropy: float = 0.1
    medium_entropy: float = 3.0
    high_entropy: float = 5.0
    low_varentropy: float = 0.1
    high_varentropy: float = 5.0
    clarifying: int = 2564  # " ..." in Llama 3's vocabulary
    candidates: int = 5
    scores: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of H, hA, V, vA, agreement, interaction

    filtered = staticmethod(filtered_cceeb84)

    def branch(self, m) -> int:
        H, V = float(m.H), float(m.V)
        fits = (
            H < self.low_entropy and V < self.low_varentropy,
            H > self.high_entropy and V < self.low_varentropy,
            H < self.high_entropy and V > self.high_varentropy,
            H > self.medium_entropy and V > self.high_varentropy,
        )
        return (*fits, True).index(True)

    def asks(self, tokens):
        """Once in a generation: every token so far is looked at, not the last one."""
        return self.clarifying not in [int(t) for t in tokens]

    def parameters(self, branch, m, z):
        T, top_p, top_k, min_p = self.temperature, self.top_p, self.top_k, self.min_p
        if branch == 1:
            return jnp.minimum(1.5, T * (1.3 + 0.2 * m.hA)), top_p, top_k, min_p
        if branch == 2:
            wider = max(5, int(top_k * (1 + 0.5 * (1 - m.agreement))))
            return jnp.minimum(1.5, T * (1.2 + 0.3 * m.interaction[0])), top_p, wider, min_p
        if branch == 3:
            hot = jnp.maximum(2.0, T * (2.0 + 0.5 * m.vA))
            return hot, jnp.maximum(0.5, top_p - 0.2 * m.hA), top_k, min_p
        of_logits, of_attention = m.H + m.V, m.hA + m.vA
        wider = round(top_k * (1 + 0.3 * float(m.interaction[0]) - 0.2 * float(m.agreement)))
        return (
            T * (1 + 0.3 * of_logits + 0.2 * of_attention - 0.2 * m.agreement),
            jnp.clip(top_p * (1 + 0.1 * m.vA), 0.1, 1.0),
            min(max(wider, 1), 100),
            jnp.clip(min_p * (1 - 0.5 * of_logits), 0.01, 0.5),
        )

    def confidence(self, m):
        a = self.scores
        calm = sum(w * (1 - x) for w, x in zip(a, (m.H, m.hA, m.V, m.vA), strict=False))
        return calm + a[4] * m.agreement + a[5] * m.interaction[0]


@dataclass(frozen=True)
class G9d41be6(_Static):
    """Revision 9d41be6: the last with thresholds alone. Attention gates the quadrants, and no agreement is asked."""

    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 40
    min_p: float = 0.05
    low_entropy: float = 0.8
    medium_entropy: float = 1.7
    high_entropy: float = 2.5
    low_varentropy: float = 0.4
    high_varentropy: float = 1.2
    low_attention_entropy: float = 1.0
    high_attention_entropy: float = 2.0
    low_attention_varentropy: float = 0.3
    high_attention_varentropy: float = 0.8
    clarifying: int = 2564
    candidates: int = 5
    scores: tuple[float, ...] = (1.0, 0.8, 0.6, 0.4)  # of H, hA, V, vA, each against its high threshold

    filtered = staticmethod(filtered_9d41be6)

    def branch(self, m) -> int:
        H, V, hA, vA = (float(x) for x in m[:4])
        calm = hA < self.low_attention_entropy and vA < self.low_attention_varentropy
        flat, wide = V < self.low_varentropy, V > self.high_varentropy
        split = vA > self.high_attention_varentropy
        fits = (
            H < self.low_entropy and flat and calm,
            H > self.high_entropy and flat and calm,
            H < self.high_entropy and wide and hA < self.low_attention_entropy and split,
            H > self.medium_entropy and wide and hA > self.high_attention_entropy and split,
        )
        return (*fits, True).index(True)

    def asks(self, tokens):
        """At every flat step, whatever was said before."""
        return True

    def parameters(self, branch, m, z):
        T, top_p, top_k, min_p = self.temperature, self.top_p, self.top_k, self.min_p
        if branch == 2:
            return T, top_p, top_k, min_p
        if branch == 3:
            return jnp.minimum(2.0, T * (0.3 + 0.25 * m.vA)), jnp.maximum(0.5, top_p - 0.3 * m.hA), top_k, min_p
        log_p = jax.nn.log_softmax(z)
        E = -jnp.sum(jnp.exp(log_p) * log_p, -1)[0]  # nats: the surer the model, the hotter the draw
        T = jnp.clip(T * jnp.sqrt((1.2 * E + 2.0) / (E + 1e-6)), 0.1, 2.0)
        return T, top_p, top_k, jnp.clip(min_p * (1 - 0.2 * m.V), 0.01, 0.5)

    def confidence(self, m):
        highest = self.high_entropy, self.high_attention_entropy, self.high_varentropy, self.high_attention_varentropy
        return sum(w * (1 - x / high) for w, x, high in zip(self.scores, (m.H, m.hA, m.V, m.vA), highest, strict=True))


PUBLISHED = {"cceeb84": Cceeb84(), "9d41be6": G9d41be6()}
