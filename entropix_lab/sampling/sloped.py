"""A temperature that rises or falls with the entropy: one number says which, and how steeply."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .draw import draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sloped:
    """A draw at the temperature T = temperature * exp(slope * (H - mean_entropy)), H the entropy in nats: a slope
    above 0 heats where the model hesitates, as EDT (arXiv 2403.14541) does, one below 0 cools there, as in
    arXiv 2510.05987."""

    temperature: float
    slope: float
    mean_entropy: float = 1.0  # nats; where T is `temperature`

    def init(self, batch):
        return ()

    def __call__(self, logits, metrics, state, keys):
        T = self.temperature * jnp.exp(self.slope * (metrics["entropy"] - self.mean_entropy))
        return draw(jax.nn.softmax(logits / T[:, None], -1), keys), state, {"temperature": T}


def sloped(temperature: float, slope: float, mean_entropy: float = 1.0) -> Sloped:
    """The sampler with one slope, see Sloped. Raises ValueError for a temperature that is not above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    return Sloped(float(temperature), float(slope), float(mean_entropy))
