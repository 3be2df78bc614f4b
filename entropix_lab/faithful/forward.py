"""The original's forward: where it leaves Llama's, as functions that stand in for those of llama/model.py.

The architecture is otherwise Meta's: without these functions and with the checkpoint's norm_eps every revision computes
what ``llama.model.xfmr`` does. Revisions are those of github.com/xjdr-alt/entropix; see DEVIATIONS for what each does.
"""

import contextlib
import math
from dataclasses import replace as changed
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler import EXACT
from ..llama import model as llama
from ..llama.model import KVCache, at_least_float32, positions_and_mask, write_rows
from ..llama.rope import apply_scaling

EPS = 1e-6  # the default of its rms_norm; the checkpoint's norm_eps (1e-5) was never passed on
EMPTY = -0.7 * float(np.finfo(np.float32).max)  # the score of a slot taken for empty


def norm_as_it_comes(x, weight, eps):
    """RMSNorm in x's own dtype, where Meta computes in float32."""
    return weight * (x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps))


def silu_as_it_comes(x):
    return jax.nn.silu(x)


def table_in_jax(config, end, dtype=np.float32):
    """cos and sin of every rotation by JAX, which are up to 6e-8 from NumPy's: enough to tip a key that is rounded to
    bfloat16 over to its neighbour."""
    with jax.ensure_compile_time_eval():
        exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
        freqs = 1.0 / config.rope_theta**exponents
        freqs = apply_scaling(np.asarray(freqs)) if config.use_scaled_rope else freqs
        angles = jnp.outer(jnp.arange(end, dtype=jnp.float32), freqs)
        return jnp.cos(angles), jnp.sin(angles)


def rope_kept_in_float32(x, cos, sin):
    """Rotated in float32, as Meta does, by complex numbers, and not cast back."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jax.lax.complex(cos, sin)[:, :, None]
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape)


def weights_laid_out_by_input(x, w):
    """The same product from a weight that lies in memory as [in,out]: other sums in float32's last bits."""
    return jnp.dot(x, jax.lax.optimization_barrier(w.T)).astype(x.dtype)


def cache_in_bfloat16(slots, rows, start_pos, axis):
    """What is attended is what a bfloat16 cache holds, from the prompt on."""
    return _rounded(write_rows(slots, rows, start_pos, axis))


def cache_in_bfloat16_after_the_prompt(slots, rows, start_pos, axis):
    """The prompt attends its own keys and values; the cache, from which all later tokens read, is bfloat16."""
    slots = write_rows(slots, rows, start_pos, axis)
    return jnp.where(start_pos[:, None, None, None] == 0, slots, _rounded(slots))


def _rounded(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


# Two orders of the same sums. They differ in float32's last bits, and those tip keys in a bfloat16 cache over.
_MATMUL = (
    lambda xq, keys: jnp.matmul(xq.swapaxes(1, 2), keys.transpose(0, 2, 3, 1)),
    lambda probs, values: jnp.matmul(probs, values.swapaxes(1, 2)).swapaxes(1, 2),
)
_EINSUM = (partial(jnp.einsum, "BTNH,BSNH->BNTS"), partial(jnp.einsum, "BNTS,BSNH->BTNH"))


def _attend(products, sees, xq, keys, values, mask, tap):
    """``llama.model.attend`` for queries wider than the values; sees(scores, mask) [B,N,T,S]: what takes part."""
    with_keys, with_values = products
    keys, values = keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)  # [B,S,K,H]
    keys, values = (jnp.repeat(x, xq.shape[2] // x.shape[2], axis=2) for x in (keys, values))
    scores = (at_least_float32(with_keys(xq, keys.astype(xq.dtype))) / math.sqrt(xq.shape[3])).astype(xq.dtype)
    scores = tap("scores", jnp.where(sees(scores, mask[:, 0]), scores, -jnp.inf))
    probs = jax.nn.softmax(jnp.maximum(at_least_float32(scores), EMPTY), axis=-1).astype(values.dtype)
    return with_values(tap("probs", probs), values)


def _not_zero(scores, mask):
    """A slot is empty where its score is exactly 0; only the prompt has a causal mask."""
    return (scores != 0) & mask if scores.shape[2] > 1 else scores != 0


attend_in_float32 = partial(_attend, _EINSUM, lambda scores, mask: mask)
attend_what_is_not_zero = partial(_attend, _EINSUM, _not_zero)
attend_what_is_not_zero_by_matmul = partial(_attend, _MATMUL, _not_zero)


def positions_after_a_gap(config, T, start_pos, max_seq_len, dtype):
    """Everything after the prompt sits one position further than it should."""
    freqs_cis, _ = positions_and_mask(config, T, start_pos + (start_pos > 0), max_seq_len + 1, dtype)
    return freqs_cis, positions_and_mask(config, T, start_pos, max_seq_len, dtype)[1]


class Deviation(NamedTuple):
    """One of them by itself. replace: functions of llama/model.py that it replaces; config: fields that it changes;
    tap: the first value that must differ from Meta's, "none" where there is none; needs: the dtype of the weights in
    which it makes a difference, "" for any; mode: of ``lab.compare``, "cached" where the prompt alone shows nothing (of
    "rope" it says that a value has another dtype, and compares nothing); revisions: which have it."""

    name: str
    what: str
    tap: str
    replace: dict = {}
    config: dict = {}
    needs: str = ""
    mode: str = "prefill"
    revisions: str = "all"

    def of(self, model):
        """The model with the config changed; the functions are handed on separately (see xfmr)."""
        return changed(model, config=changed(model.config, **self.config))


_ROPE = {
    "apply_rotary_emb": rope_kept_in_float32,
    "attend": attend_in_float32,
}
DEVIATIONS = (
    Deviation("eps", "RMSNorm's epsilon is 1e-6 whatever the checkpoint says",
              "layers.0.attention_norm", config={"norm_eps": EPS}),
    Deviation("cache", "KV cache in bfloat16 under float32 weights", "layers.0.attention.scores",
              {"write_rows": cache_in_bfloat16}, needs="float32", revisions="9d41be6, 0a7f7bb"),
    Deviation("late cache", "the same, but the prompt attends its own float32", "layers.0.attention.scores",
              {"write_rows": cache_in_bfloat16_after_the_prompt}, needs="float32", mode="cached",
              revisions="cceeb84"),
    Deviation("gap", "a position is left out between prompt and first new token", "layers.0.attention.xq_rope",
              {"positions_and_mask": positions_after_a_gap}, mode="cached"),
    Deviation("zero mask", "a score of exactly 0 marks an empty slot, no mask by length", "none",
              {"attend": attend_what_is_not_zero}),
    Deviation("norm", "RMSNorm computed in bfloat16", "layers.0.attention_norm",
              {"rms_norm": norm_as_it_comes}, needs="bfloat16"),
    Deviation("silu", "SiLU computed in bfloat16", "layers.0.feed_forward.w2",
              {"silu": silu_as_it_comes}, needs="bfloat16"),
    Deviation("rope", "rotated queries and keys, and their products, kept in float32", "layers.0.attention.xq_rope",
              _ROPE, needs="bfloat16"),
)  # fmt: skip

_TOGETHER = {
    "precompute_freqs_cis": table_in_jax,
    "rms_norm": norm_as_it_comes,
    "silu": silu_as_it_comes,
    "apply_rotary_emb": rope_kept_in_float32,
    "attend": attend_what_is_not_zero_by_matmul,
    "write_rows": cache_in_bfloat16,
}
REVISIONS = {
    "cceeb84": _TOGETHER | {"write_rows": cache_in_bfloat16_after_the_prompt},  # 2024-10-07
    "9d41be6": _TOGETHER,  # 2024-10-31, the last with thresholds alone
    # 2024-11-08, the last public one
    "0a7f7bb": _TOGETHER | {"attend": attend_what_is_not_zero, "linear": weights_laid_out_by_input},
}


def original_config(config):
    return changed(config, norm_eps=EPS)


def new_cache(config, batch, max_seq_len=4096, dtype="float32") -> KVCache:
    """Empty, keys in float32 and values in the weights' dtype; what the revisions keep in them has bfloat16's bits.
    Empty must mean zero here: it is by their scores of exactly 0 that the original knows empty slots."""
    k, v = (KVCache.new(config, batch, max_seq_len, d) for d in ("float32", dtype))
    return KVCache(k.k, v.v)


def xfmr(weights, config, tokens, cur_pos, cache, functions):
    """The forward with functions {name: function} in place of those of llama/model.py, tokens [B,T] from slot cur_pos
    on -> (logits [B,T,V] float32, cache, scores [L,B,N,T,S]). The cache is donated.

    For the whole of a revision: ``original_config(config)``, ``new_cache`` and ``REVISIONS[revision]``. scores are
    those before the softmax as the original hands them out: of a single token over the whole cache, with 0 in empty
    slots. Its logits stay in the weights' dtype, which changes no value of them: cast them before measuring.
    """
    start_pos = jnp.full(tokens.shape[0], cur_pos, jnp.int32)
    x, layers, functions = weights.tok_embeddings[jnp.asarray(tokens)], [], tuple(functions.items())
    with jax.default_matmul_precision("highest"):
        for w, keys, values in zip(weights.layer_weights, cache.k, cache.v, strict=True):
            x, *layer = _layer(w, config, x, start_pos, keys, values, functions)
            layers.append(layer)
        logits = _head(weights._replace(tok_embeddings=None, layer_weights=()), config, x, functions)
    keys, values, scores = zip(*layers, strict=True)
    return logits, KVCache(keys, values), _stack(scores)


_stack = jax.jit(jnp.stack)  # one program instead of one to each layer
_jit = partial(jax.jit, static_argnames=("config", "functions"), compiler_options=EXACT)


# one program serves all layers, as every deviation needs its own and runs it but a few times
@partial(_jit, donate_argnames=("keys", "values"))
def _layer(w, config, x, start_pos, keys, values, functions):
    found = {}
    with standing_in(functions):
        freqs_cis, mask = llama.positions_and_mask(config, x.shape[1], start_pos, keys.shape[-1], x.dtype)
        x, keys, values = llama.block(w, config, x, freqs_cis, mask, start_pos, keys, values, found.setdefault)
    scores = llama.by_query_head(found["attention.scores"])
    return x, keys, values, jnp.where(scores == -jnp.inf, 0, scores)


@_jit
def _head(weights, config, x, functions):
    with standing_in(functions):
        return llama.head(weights, config, x, llama.no_tap)


@contextlib.contextmanager
def standing_in(functions):
    """Pairs (name, function) in the place of functions of llama/model.py, while a program is traced."""
    before = [(name, getattr(llama, name)) for name, _ in functions]
    try:
        for name, function in functions:
            setattr(llama, name, function)
        yield
    finally:
        for name, function in before:
            setattr(llama, name, function)


def teacher_forced(model, tokens, n_prompt, functions, gap=0, max_seq_len=None):
    """A prompt of n_prompt of the tokens [B,T], then the others one by one, each given whatever the logits say ->
    (logits of the prompt [B,n_prompt,V], logits after it [B,T-n_prompt,V], scores [L,B,N,1,S] of the last step).

    model: config and weights, e.g. that of ``Deviation.of``. gap: how many slots stay empty after the prompt; the
    original's loops leave one, which is harmless only to a forward that masks scores of 0."""
    B, T = tokens.shape
    cache = new_cache(model.config, B, max_seq_len or T + gap, model.weights.norm.dtype)
    prompt, cache, _ = xfmr(model.weights, model.config, tokens[:, :n_prompt], 0, cache, functions)
    later = []
    for i in range(n_prompt, T):
        logits, cache, scores = xfmr(model.weights, model.config, tokens[:, i : i + 1], i + gap, cache, functions)
        later.append(logits[:, 0])
    return prompt, jnp.stack(later, 1), scores


class Effect(NamedTuple):
    """The largest difference of two logits [B,T,V], the mean KL(right || found) in nats, and at how many of all
    positions the likeliest token is another."""

    max_abs: float
    kl: float
    flips: int
    positions: int

    def __str__(self):
        return f"{self.max_abs:9.2g} {self.kl:9.2g} {self.flips:3} of {self.positions}"


def effect(right, found) -> Effect:
    """The Effect of found logits [n,V] beside the right ones."""
    p, q = jax.nn.log_softmax(right), jax.nn.log_softmax(found)
    kl = jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))
    changed = right.argmax(-1) != found.argmax(-1)
    return Effect(float(jnp.abs(right - found).max()), float(kl), int(changed.sum()), changed.size)
