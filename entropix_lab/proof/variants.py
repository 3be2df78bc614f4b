"""Correct ways to compute the same layer. Their distances from the layer as it is are what rounding explains."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu_weights import DecodeWeights, fused
from ..llama.model import at_least_float32


class Variant(NamedTuple):
    """A correct way to compute the same layer: other sums, another form of the weights, several copies of the batch.

    around: (name, wrapper) of functions of model.py: a wrapper calls the function that it wraps, in another order.
    form, head: the form of a layer's weights, and that of those outside the layers.
    """

    name: str
    around: tuple = ()
    form: Callable = lambda w: w
    head: Callable = lambda w: w
    copies: int = 1


def _linear_reversed(linear):
    return lambda x, w, *sums: linear(x[..., ::-1], w, *sums)


@jax.jit
def _fused_reversed(w):
    # once a layer, outside its program: to turn the matrices in there takes as long as the products
    w = fused(w)
    return w._replace(**{name: x[::-1] for name, x in w._asdict().items() if x.ndim == 2})


@jax.jit
def _output_reversed(w):
    turned = dict(output_t=w.output_t[::-1]) if isinstance(w, DecodeWeights) else dict(output=w.output[:, ::-1])
    return widened(w._replace(**turned))


def _norm_reversed(rms_norm):
    return lambda x, weight, eps: rms_norm(x[..., ::-1], weight[::-1], eps)[..., ::-1]


def _scores_reversed(attend):
    return lambda xq, keys, values, mask, tap: attend(xq[..., ::-1], keys[..., ::-1, :], values, mask, tap)


def _scores_even_first(attend):
    turn = lambda x: jnp.concatenate([x[..., ::2, :], x[..., 1::2, :]], -2)
    turned = lambda xq: turn(xq[..., None])[..., 0]
    return lambda xq, keys, values, mask, tap: attend(turned(xq), turn(keys), values, mask, tap)


def _softmax_reversed(softmax):
    return lambda scores: softmax(scores[..., ::-1])[..., ::-1]


def _linear_in_halves(linear):
    def halves(x, w, *sums):
        half, x_wide = x.shape[-1] // 2, at_least_float32(x)
        return (linear(x_wide[..., :half], w[:, :half]) + linear(x_wide[..., half:], w[:, half:])).astype(x.dtype)

    return halves


def widened(w):
    """Matrices in float32 at least: products of bfloat16 are slow on a CPU, and their sums are float32 anyway."""
    return jax.tree.map(lambda x: at_least_float32(x) if x.ndim == 2 else x, w)


def _angles_off(precompute_freqs_cis):
    """Every rotation angle half a float32 unit larger: the next port's table need not be rounded as ours is."""

    def table(config, end, dtype=np.float32):
        with jax.ensure_compile_time_eval():  # a table on trial may be jax.numpy's
            cos, sin = (np.asarray(t, np.float64) for t in precompute_freqs_cis(config, end + 1, dtype))
        off = np.outer(np.arange(end + 1), np.arctan2(sin[1], cos[1])) * (np.finfo(np.float32).eps / 2)
        turned = cos * np.cos(off) - sin * np.sin(off), sin * np.cos(off) + cos * np.sin(off)
        return tuple(t[:end].astype(dtype) for t in turned)

    return table


_REVERSED = (
    ("linear", _linear_reversed),
    ("rms_norm", _norm_reversed),
    ("attend", _scores_reversed),
    ("softmax", _softmax_reversed),
)
VARIANTS = (
    Variant("sums in reverse, fused weights, twice the batch", _REVERSED, _fused_reversed, _output_reversed, copies=2),
    Variant("sums in halves", (("linear", _linear_in_halves), ("attend", _scores_even_first)), widened, widened),
    Variant("angles off by a rounding", (("precompute_freqs_cis", _angles_off),), head=widened),
)
AS_IT_IS = Variant("as it is")
