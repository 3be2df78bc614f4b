"""Functions of model.py and weights as ports get them wrong, each the untouched one with one thing changed.

faults.py makes Faults of them.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ..llama.model import (
    apply_rotary_emb,
    at_least_float32,
    head,
    linear,
    positions_and_mask,
    softmax,
    transformer,
)
from ..llama.rope import precompute_freqs_cis
from ..llama.weights import LayerWeights
from .passes import replaced


def without_the_last_tile(x, w):
    """A product that leaves out the last eighth of its sum."""
    kept = x.shape[-1] * 7 // 8
    return linear(x[..., :kept], w[:, :kept])


def products_in_tf32(x, w):
    """What a GPU makes of float32 unless it is told otherwise: ten bits of fraction in, float32 sums."""
    if x.dtype != jnp.float32:
        return linear(x, w)
    return linear(*(jax.lax.reduce_precision(z, exponent_bits=8, mantissa_bits=10) for z in (x, w)))


def partial_sums_rounded(x, w):
    """Sums cut into four, whose parts meet in x's dtype."""
    a, b, c, d = (linear(*part) for part in zip(jnp.split(x, 4, -1), jnp.split(w, 4, -1), strict=True))
    return a + b + c + d


def in_single_steps(product):
    """A product that only a step of one token takes."""
    return lambda x, w: product(x, w) if x.shape[1] == 1 else linear(x, w)


def products_in_bfloat16(x, w):
    return linear(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)).astype(x.dtype)


def tf32_from_the_middle_on(x, w):
    half = x.shape[1] // 2
    return jnp.concatenate([linear(x[:, :half], w), products_in_tf32(x[:, half:], w)], 1)


class LayerInTF32(LayerWeights):
    def qkv(self, linear, x):
        return tuple(products_in_tf32(x, w) for w in (self.wq, self.wk, self.wv))

    def gate_up(self, linear, x):
        return products_in_tf32(x, self.w1), products_in_tf32(x, self.w3)


def first_w2_and_a_noisy_layer(weights):
    layers, i = list(weights.layer_weights), len(weights.layer_weights) // 2
    layers[0], layers[i] = layers[0]._replace(w2=layers[0].w2 * (1 + 2e-4)), LayerInTF32(*layers[i])
    return tuple(layers)


def with_dropout(config):
    """Another mask for every program, as a generator's state at tracing gives it."""
    masks = np.random.default_rng(0)

    def dropout(scores):
        probs = softmax(scores)
        return probs * jnp.asarray((masks.random(probs.shape[1:]) > 0.1) / 0.9, probs.dtype)

    return {"softmax": dropout}


def loop_with_a_bfloat16_table(*args):
    with replaced([("precompute_freqs_cis", table_in_bfloat16)]):
        return transformer(*args)


def key_caches_swapped(*args):
    x, cache = transformer(*args)
    k, i = list(cache.k), len(cache.k) // 2
    k[0], k[i] = k[i], k[0]
    return x, cache._replace(k=tuple(k))


def one_logit(weights, config, x, tap):
    return head(
        weights, config, x, lambda name, z: tap(name, z.at[..., 198 % z.shape[-1]].add(20) if name == "output" else z)
    )


def rms_norm_over_the_batch(x, weight, eps):
    x32 = at_least_float32(x)
    mean = jnp.mean(x32 * x32, (0, -1), keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + eps)).astype(x.dtype) * weight


def merge_on_the_wrong_axis(w):
    """Two shards of a matrix that was split by rows, laid side by side."""
    return jnp.concatenate(jnp.split(w, 2, axis=0), axis=1).reshape(w.shape)


def twice_the_layer_before(weights):
    layers, i = list(weights.layer_weights), len(weights.layer_weights) // 2
    layers[i] = layers[i - 1]
    return tuple(layers)


def untied(weights):
    shape, dtype = weights.output.shape, weights.output.dtype
    return (jax.random.normal(jax.random.key(0), shape) * jnp.std(at_least_float32(weights.output))).astype(dtype)


def rope_in_halves(x, cos, sin):
    x1, x2 = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


@lru_cache
def only_queries_rotate(config):
    rotate = lambda x, cos, sin: x if x.shape[2] == config.n_kv_heads else apply_rotary_emb(x, cos, sin)
    return {"apply_rotary_emb": rotate}


def table_in_bfloat16(config, end, dtype=np.float32):
    return tuple(t.astype(jnp.bfloat16).astype(dtype) for t in precompute_freqs_cis(config, end, dtype))


def rms_norm_in_bfloat16(x, weight, eps):
    low = x.astype(jnp.bfloat16)
    return (low * jax.lax.rsqrt(jnp.mean(low * low, -1, keepdims=True) + eps)).astype(x.dtype) * weight


def gain_before_the_cast(x, weight, eps):
    x32 = at_least_float32(x)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps) * at_least_float32(weight)).astype(
        x.dtype
    )


def mask(sees):
    """positions_and_mask with another mask: sees(slots [S], positions [B,1,1,T,1], start_pos, T) -> mask."""

    def replacement(config, T, start_pos, S, dtype):
        positions = (start_pos[:, None] + jnp.arange(T))[:, None, None, :, None]
        mask = sees(jnp.arange(S), positions, start_pos[:, None, None, None, None], T)
        freqs_cis, right = positions_and_mask(config, T, start_pos, S, dtype)
        return freqs_cis, jnp.broadcast_to(mask, right.shape)

    return {"positions_and_mask": replacement}


def gap_after_the_prompt(config, T, start_pos, S, dtype):
    freqs_cis, _ = positions_and_mask(config, T, start_pos + (start_pos > 0), S + 1, dtype)
    return freqs_cis, positions_and_mask(config, T, start_pos, S, dtype)[1]
