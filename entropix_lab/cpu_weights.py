"""The weights in the form that a CPU reads fastest, which generation uses there; the numbers are the same."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .llama.sharding import SplitLayerWeights
from .llama.weights import LayerWeights, XfmrWeights


class FusedLayerWeights(NamedTuple):
    """LayerWeights with wq, wk, wv in one matrix and w1, w3 in another, each stored as [in, out].

    Under Meta's names they are seen as [out, in]: transposed views, which jit makes part of the product at no cost.
    """

    wqkv_t: jax.Array
    wo_t: jax.Array
    w13_t: jax.Array
    w2_t: jax.Array
    attention_norm: jax.Array
    ffn_norm: jax.Array

    ends = property(lambda self: (len(self.wo_t), (len(self.wo_t) + self.wqkv_t.shape[1]) // 2))  # of wq, of wk
    wq = property(lambda self: self.wqkv_t[:, : self.ends[0]].T)
    wk = property(lambda self: self.wqkv_t[:, self.ends[0] : self.ends[1]].T)
    wv = property(lambda self: self.wqkv_t[:, self.ends[1] :].T)
    wo = property(lambda self: self.wo_t.T)
    w1 = property(lambda self: self.w13_t[:, : len(self.w2_t)].T)
    w2 = property(lambda self: self.w2_t.T)
    w3 = property(lambda self: self.w13_t[:, len(self.w2_t) :].T)

    def qkv(self, linear, x):
        return jnp.split(linear(x, self.wqkv_t.T), self.ends, axis=-1)

    def gate_up(self, linear, x):
        return jnp.split(linear(x, self.w13_t.T), 2, axis=-1)

    attention_out, down = LayerWeights.attention_out, LayerWeights.down


class DecodeWeights(NamedTuple):
    """The whole model in the form that generation reads: output as [D,V], seen as [V,D]."""

    tok_embeddings: jax.Array
    norm: jax.Array
    output_t: jax.Array
    layer_weights: tuple[FusedLayerWeights, ...]

    output = property(lambda self: self.output_t.T)


def decode_weights(weights: XfmrWeights) -> XfmrWeights | DecodeWeights:
    """The form of the weights in which generation is fastest; on anything but one CPU, the weights themselves.

    A CPU spends a token's time on reading weights. Stored as [in, out], with one matrix for wq, wk, wv and one for w1,
    w3, a token reads them a fifth faster than as Meta's five matrices, and a batch of 8 takes half the time. bfloat16
    weights become float32 copies, and the cache beside them is float32 (see prefill), as XLA's products of bfloat16 are
    many times slower there; the forward rounds each result, so the numbers stay those of bfloat16. Costs a copy of all
    matrices, the output's included.
    """
    if isinstance(weights, DecodeWeights) or not on_one_cpu(weights.norm):
        return weights
    layers = tuple(map(decode_layer, weights.layer_weights))
    (output,) = aligned_copies(_turned(weights.output))
    return DecodeWeights(weights.tok_embeddings, weights.norm, jax.device_put(output), layers)


def decode_layer(w: LayerWeights) -> FusedLayerWeights:
    """One layer in its fused form, and in the memory from which a CPU reads it fastest (see aligned)."""
    return w if isinstance(w, FusedLayerWeights) else FusedLayerWeights(*map(jax.device_put, aligned_copies(*fused(w))))


def aligned_copies(*arrays) -> list[np.ndarray]:
    """Copies of arrays beside each other in aligned memory."""
    copies = aligned(*((x.shape, x.dtype) for x in arrays))
    for copy, x in zip(copies, arrays, strict=True):
        copy[...] = x
    return copies


def aligned(*like) -> list[np.ndarray]:
    """Arrays of (shape, dtype) each, not yet filled, beside each other in one block of memory that NumPy owns.

    Each begins at a multiple of 64 bytes, where JAX on a CPU refers to it instead of copying it once more. NumPy asks
    Linux to make a block of 4 MiB or more of huge pages: one token of a model of 135M is then computed 7 % faster.
    """
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in like]
    starts = np.cumsum([0, *(-(-size // 64) * 64 for size in sizes)])
    memory = np.empty(starts[-1] + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]
    parts = [memory[start : start + size] for start, size in zip(starts[:-1], sizes, strict=True)]
    return [part.view(dtype).reshape(shape) for part, (shape, dtype) in zip(parts, like, strict=True)]


def fused(w: LayerWeights) -> FusedLayerWeights:
    """One layer in its fused form, matrices in float32 at least."""
    if isinstance(w, FusedLayerWeights):
        return w
    matrices = _turned(w.wq, w.wk, w.wv), _turned(w.wo), _turned(w.w1, w.w3), _turned(w.w2)
    return FusedLayerWeights(*matrices, w.attention_norm, w.ffn_norm)


def unfused(w) -> LayerWeights:
    """One layer as LayerWeights (on several devices SplitLayerWeights), whatever class holds it."""
    if isinstance(w, FusedLayerWeights):
        return LayerWeights(*(getattr(w, name) for name in LayerWeights._fields))
    return w if type(w) is SplitLayerWeights else LayerWeights(*w)


@jax.jit
def _turned(*matrices):
    """Matrices [out, in] beside each other as one [in, out], in float32 at least."""
    x = jnp.concatenate(matrices).T
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def on_one_cpu(x) -> bool:
    """Whether an array lies on a single CPU, for which the fused form is made."""
    return [device.platform for device in x.devices()] == ["cpu"]
