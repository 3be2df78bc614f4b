"""Llama's forward pass, with a KV cache and a name for every value that Meta's modules produce.

Axes: B batch, T new tokens, S cache slots, D dim, F feed-forward width, V vocabulary, N query heads, K key/value heads,
G = N/K query heads to each of them, H head_dim.
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .config import dtype_name
from .rope import apply_rotary_emb, precompute_freqs_cis

# On every product of float32, here and in other folders: a GPU or a TPU computes it in TF32 or bfloat16 unless told
# otherwise. It changes nothing of products of bfloat16.
HIGHEST = jax.lax.Precision.HIGHEST


class KVCache(NamedTuple):
    """Rotated keys [B,K,H,S] and values [B,K,S,H], n_layers arrays of each: as the products of attention read them.

    Slots not yet written may hold anything finite."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @classmethod
    def new(cls, config, batch: int = 1, max_seq_len: int = 512, dtype="float32", device=None) -> "KVCache":
        """An empty cache with max_seq_len slots to a row, in the dtype in which the forward computes.

        device: where, as for jnp.zeros; sharding.of_cache says it for weights on a mesh."""
        B, S, K, H = batch, max_seq_len, config.n_kv_heads, config.head_dim
        zeros = lambda shape: jnp.zeros(shape, dtype_name(dtype), device=device)
        return cls(*(tuple(zeros(shape) for _ in range(config.n_layers)) for shape in ((B, K, H, S), (B, K, S, H))))

    @property
    def max_seq_len(self) -> int:
        return self.v[0].shape[2]


def at_least_float32(x):
    """Meta's ``.float()``, which leaves float64 alone so that the same code can compute the truth."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def linear(x, w, sums=None):
    """x [...,in] times a weight in Meta's layout [out,in]; a weight wider than x rounds its result to x's dtype.

    sums: the dtype of the product before that rounding; None for the operands'. Within it XLA adds up in float32.
    """
    # not x @ w.T: with JAX 0.12 a token then takes six times as long on a CPU (127 ms for 21 of the demo model)
    return jnp.einsum("...D,ND->...N", x, w, precision=HIGHEST, preferred_element_type=sums).astype(x.dtype)


def rms_norm(x, weight, eps):
    """RMSNorm in Meta's order of casts: float32 inside, back to x's dtype, then the gain."""
    x32 = at_least_float32(x)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype) * weight


def write_rows(slots, rows, start_pos, axis):
    """slots with rows [B,T,K,H] from slot start_pos [B] on. axis: that of the slots, -1 of keys, -2 of values."""
    rows = rows.astype(slots.dtype)

    def several(slots, rows, start):
        return jax.lax.dynamic_update_slice_in_dim(slots, jnp.moveaxis(rows, 0, axis), start, axis)

    def one(slots, rows, start):
        # by index, and twice: XLA on a CPU updates a slice of one slot only after it has copied the cache
        at = (..., start + jnp.zeros(2, int), *[slice(None)] * (-1 - axis))
        return slots.at[at].set(jnp.moveaxis(rows, 0, axis))

    return jax.vmap(one if rows.shape[1] == 1 else several)(slots, rows, start_pos)


def attention(w, config, x, freqs_cis, mask, start_pos, cache_k, cache_v, tap):
    """x [B,T,D], a layer's keys [B,K,H,S] and values [B,K,S,H] -> (its output [B,T,D], keys and values with x's)."""
    B, T, _ = x.shape
    N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
    xq, xk, xv = w.qkv(linear, x)
    xq = tap("wq", xq).reshape(B, T, N, H)
    xk = tap("wk", xk).reshape(B, T, K, H)
    xv = tap("wv", xv).reshape(B, T, K, H)
    xq = tap("xq_rope", apply_rotary_emb(xq, *freqs_cis))
    xk = tap("xk_rope", apply_rotary_emb(xk, *freqs_cis))

    keys, values = write_rows(cache_k, xk, start_pos, -1), write_rows(cache_v, xv, start_pos, -2)
    out = attend(xq, keys, values, mask, tap).reshape(B, T, N * H)
    return tap("wo", w.attention_out(linear, out)), keys, values


def attend(xq, keys, values, mask, tap):
    """Queries [B,T,N,H] over keys [B,K,H,S] and values [B,K,S,H] where mask [B,1,1,T,S] is true -> [B,T,N,H]."""
    B, T, N, H = xq.shape
    K = keys.shape[1]
    # query head n reads key/value head n // G: no copies of the keys are made
    xq = xq.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    # as in linear, a cache wider than x rounds its results to x's dtype
    scores = jnp.einsum("BKGTH,BKHS->BKGTS", xq, keys, precision=HIGHEST).astype(xq.dtype)
    scores = (at_least_float32(scores) / math.sqrt(H)).astype(xq.dtype)
    scores = tap("scores", jnp.where(mask, scores, -jnp.inf))
    probs = tap("probs", softmax(scores))
    out = jnp.einsum("BKGTS,BKSH->BKGTH", probs, values, precision=HIGHEST).astype(xq.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def softmax(scores):
    return jax.nn.softmax(at_least_float32(scores), axis=-1).astype(scores.dtype)


def silu(x):
    return jax.nn.silu(at_least_float32(x)).astype(x.dtype)


def feed_forward(w, x, tap):
    """SwiGLU: x [B,T,D] -> [B,T,D]."""
    gate, up = w.gate_up(linear, x)
    gate, up = tap("w1", gate), tap("w3", up)
    return tap("w2", w.down(linear, silu(gate) * up))


def block(w, config, x, freqs_cis, mask, start_pos, cache_k, cache_v, tap):
    """One layer: residual stream x [B,T,D] -> (x, keys, values)."""
    h = tap("attention_norm", rms_norm(x, w.attention_norm, config.norm_eps))
    h, keys, values = attention(w, config, h, freqs_cis, mask, start_pos, cache_k, cache_v, under(tap, "attention."))
    x = tap("h_attn", x + h)
    h = tap("ffn_norm", rms_norm(x, w.ffn_norm, config.norm_eps))
    return x + feed_forward(w, h, under(tap, "feed_forward.")), keys, values


def positions_and_mask(config, T, start_pos, max_seq_len, dtype):
    """(cos, sin) of the T new positions of each row, [B,T,H/2], and which slots each may see, [B,1,1,T,S].

    A position sees the slots up to its own: a mask by length, so what lies in the slots beyond is never read.
    """
    positions = start_pos[:, None] + jnp.arange(T)
    table = precompute_freqs_cis(config, max_seq_len, np.float64 if dtype == jnp.float64 else np.float32)
    freqs_cis = tuple(jnp.asarray(t)[positions] for t in table)
    mask = jnp.arange(max_seq_len) <= positions[:, None, None, :, None]
    return freqs_cis, mask


def transformer(weights, config, tokens, start_pos, cache, tap):
    """Everything below the output head: tokens [B,T] -> (residual stream [B,T,D], cache)."""
    B, T = tokens.shape
    start_pos = jnp.broadcast_to(jnp.asarray(start_pos, jnp.int32), (B,))
    x = tap("tok_embeddings", weights.tok_embeddings[tokens])
    freqs_cis, mask = positions_and_mask(config, T, start_pos, cache.max_seq_len, x.dtype)
    new_k, new_v = [], []
    for i, w in enumerate(weights.layer_weights):
        x, k, v = block(w, config, x, freqs_cis, mask, start_pos, cache.k[i], cache.v[i], under(tap, f"layers.{i}."))
        x = tap(f"layers.{i}", x)
        new_k.append(k)
        new_v.append(v)
    return x, KVCache(tuple(new_k), tuple(new_v))


def head(weights, config, x, tap):
    """The final norm and the output matrix: [B,T,D] -> logits [B,T,V], at least float32."""
    x = tap("norm", rms_norm(x, weights.norm, config.norm_eps))
    return tap("output", at_least_float32(linear(x, weights.output)))


def no_tap(name, x):
    return x


def under(tap, prefix):
    """The tap for what lies below a module: names get its prefix."""
    return tap if tap is no_tap else lambda name, x: tap(prefix + name, x)


def xfmr(weights, config, tokens, start_pos, cache, tap=no_tap):
    """Llama's forward pass (``Transformer.forward`` in llama_models.llama3.model).

    weights: XfmrWeights; tokens: [B,T] int32; start_pos: the slot of each row's first token, int or [B];
    cache: KVCache with at least start_pos + T slots. Returns (logits [B,T,V], cache); the logits are float32, float64
    when the weights are. A pure function: the cache that was given is unchanged unless jit was told to donate it.

    Raises ValueError for a token outside the vocabulary, and for a cache too short or of another dtype. Under jit
    tokens and positions are not known, and XLA would clamp them silently: callers who jit check first with
    ``check_inputs``.
    """
    check_inputs(config, tokens, start_pos, cache)
    if cache.k[0].dtype != weights.tok_embeddings.dtype:
        raise ValueError(
            f"the cache is {cache.k[0].dtype}, the weights are {weights.tok_embeddings.dtype}: make one with "
            f'KVCache.new(config, batch, max_seq_len, dtype="{weights.tok_embeddings.dtype}")'
        )
    x, cache = transformer(weights, config, tokens, start_pos, cache, tap)
    return head(weights, config, x, tap), cache


def xfmr_with_taps(weights, config, tokens, start_pos, cache):
    """xfmr, and every value on the way: (logits, cache, taps).

    taps: OrderedDict in the order of execution, keyed by Meta's module paths ("layers.3.attention.wq"), and where Meta
    has no module "layers.3.attention.xq_rope", ".xk_rope" [B,T,heads,H], ".scores" (-inf where masked), ".probs"
    [B,N,T,S] and "layers.3.h_attn".
    """
    taps = OrderedDict()  # jit sorts the names of a plain dict

    def record(name, x):
        if name in taps:
            raise ValueError(f"two values are tapped under the name {name!r}")
        taps[name] = by_query_head(x)
        return x

    logits, cache = xfmr(weights, config, tokens, start_pos, cache, record)
    return logits, cache, taps


def by_query_head(x):
    """A tapped value as others see it: scores and probs [B,K,G,T,S] as [B,N,T,S], everything else as it is."""
    return x.reshape(x.shape[0], -1, *x.shape[3:]) if x.ndim == 5 else x


def check_inputs(config, tokens, start_pos, cache):
    """Raise ValueError where tokens [B,T] from start_pos on do not fit vocabulary or cache (traced values pass)."""
    if tokens.ndim != 2 or 0 in tokens.shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [B,T] with B, T > 0, found {tokens.dtype} {tokens.shape}")
    if cache.k[0].shape[0] != tokens.shape[0]:
        raise ValueError(f"the cache has {cache.k[0].shape[0]} rows, the tokens have {tokens.shape[0]}")
    if not isinstance(tokens, jax.core.Tracer):
        outside = np.asarray(tokens)[(np.asarray(tokens) < 0) | (np.asarray(tokens) >= config.vocab_size)]
        if outside.size:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {config.vocab_size}")
    if not isinstance(start_pos, jax.core.Tracer):
        first, last = np.min(start_pos), np.max(start_pos) + tokens.shape[1]
        if first < 0 or last > cache.max_seq_len:
            raise ValueError(
                f"tokens at positions {first} to {last - 1} do not fit a cache of {cache.max_seq_len} slots: make a "
                f"larger one with KVCache.new(config, batch, max_seq_len={last})"
            )
