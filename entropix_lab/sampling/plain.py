"""Samplers that look at nothing but the logits."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from .draw import draw, keep, likeliest

# A field that sets shapes or control flow: a new value is a new program. All other fields are traced.
static = partial(field, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """What greedy() makes. Called with logits [B,V] it returns (tokens [B], state, what it reports)."""

    def init(self, batch):
        return ()

    def __call__(self, logits, metrics, state, keys):
        return jnp.argmax(logits, -1).astype(jnp.int32), state, {}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """What sample() and the cuts make. It reports kept [B], the number of tokens that could be drawn."""

    temperature: float = 1.0
    top_k: int | None = static(default=None)
    top_p: float | None = None
    min_p: float | None = None
    top_n_sigma: float | None = None

    def init(self, batch):
        return ()

    def __call__(self, logits, metrics, state, keys):
        ids = None
        if self.top_n_sigma is not None:  # before top_k: the spread is that of all logits
            floor = jnp.max(logits, -1) - self.top_n_sigma * jnp.std(logits, -1)
            logits = jnp.where(logits >= floor[:, None], logits, -jnp.inf)
        if self.top_k is not None:
            logits, ids = likeliest(logits, self.top_k)
        probs = keep(jax.nn.softmax(logits / self.temperature, -1), self.top_p, self.min_p)
        token = draw(probs, keys)
        if ids is not None:
            token = jnp.take_along_axis(ids, token[:, None], -1)[:, 0]
        return token, state, {"kept": jnp.sum(probs > 0, -1)}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fixed:
    """A sampler that is no pytree: static under jit as a whole."""

    sampler: object

    @property
    def needs(self):
        return getattr(self.sampler, "needs", ())

    def init(self, batch):
        return self.sampler.init(batch)

    def __call__(self, logits, metrics, state, keys):
        return self.sampler(logits, metrics, state, keys)


def bound(sampler, tokenizer):
    """A sampler as the compiled step takes it: it knows the model's tokens where it wants to, and it is a pytree.
    Raises ValueError for what is no sampler."""
    if isinstance(sampler, type) or not (callable(sampler) and hasattr(sampler, "init")):
        hint = f": write {sampler.__name__}(...)" if hasattr(sampler, "__name__") else ""
        raise ValueError(f"expected a sampler, such as lab.samplers.top_p(0.9), found {sampler!r}{hint}")
    sampler = sampler.bind(tokenizer) if hasattr(sampler, "bind") else sampler
    return Fixed(sampler) if jax.tree_util.all_leaves([sampler]) else sampler


def greedy() -> Greedy:
    """The likeliest token; of equal ones the one with the lowest id."""
    return Greedy()


def sample(temperature=1.0, top_k=None, top_p=None, min_p=None, top_n_sigma=None) -> Sample:
    """A draw from softmax(logits / temperature) cut down by what is given, in this order, renormalised after each:
    top_n_sigma, those whose logit is within so many standard deviations (of all logits) of the largest, whatever the
    temperature (Tang et al. 2024, arXiv 2411.07641); top_k, the k likeliest (of equal ones the lowest ids); top_p, the
    nucleus, i.e. all tokens at least as likely as the one at which the sum of probabilities, likeliest first, reaches
    top_p (Holtzman et al. 2019; equal ones stay together); min_p, those at least min_p times as likely as the likeliest
    (Nguyen et al. 2024).

    temperature 0 is the greedy sampler. Raises ValueError for a value outside its range."""
    if temperature == 0:
        return Greedy()
    ranges = {
        "temperature": (temperature, temperature > 0, "at least 0"),
        "top_k": (top_k, top_k is None or top_k >= 1, "at least 1"),
        "top_p": (top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        "min_p": (min_p, min_p is None or 0 <= min_p <= 1, "from 0 to 1"),
        "top_n_sigma": (top_n_sigma, top_n_sigma is None or top_n_sigma >= 0, "at least 0"),
    }
    for name, (value, fits, range_) in ranges.items():
        if not fits:
            raise ValueError(f"{name} must be {range_}, found {value}")
    number = lambda x: None if x is None else float(x)  # 1 and 1.0 are one program
    return Sample(float(temperature), top_k, number(top_p), number(min_p), number(top_n_sigma))


def temperature(t: float) -> Sample:
    """A draw from softmax(logits / t). This and the cuts below raise ValueError as sample does."""
    return sample(t)


def top_k(k: int, temperature=1.0) -> Sample:
    """A draw from the k likeliest tokens."""
    return sample(temperature, top_k=k)


def top_p(p: float, temperature=1.0) -> Sample:
    """A draw from the nucleus of mass p."""
    return sample(temperature, top_p=p)


def min_p(p: float, temperature=1.0) -> Sample:
    """A draw from the tokens at least p times as likely as the likeliest."""
    return sample(temperature, min_p=p)


def top_n_sigma(n: float, temperature=1.0) -> Sample:
    """A draw from the tokens whose logits are within n standard deviations of the largest."""
    return sample(temperature, top_n_sigma=n)
