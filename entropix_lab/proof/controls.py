"""Correct variants of the forward, unusual texts and other ports, on which the comparison must stay silent.

Like a fault they stand for ours in the whole comparison, or for the other; none of them is one of the variants that set
the floor.
"""

from dataclasses import replace as changed

import jax
import jax.numpy as jnp
import numpy as np

from ..llama.model import HIGHEST, at_least_float32, attend
from ..llama.rope import precompute_freqs_cis
from ..llama.weights import LayerWeights, XfmrWeights
from . import truth
from .taps import full_name
from .trials import Fault


def _rope_as_complex(x, cos, sin):
    pairs = x.astype(cos.dtype).reshape(*x.shape[:-1], -1, 2)
    turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jax.lax.complex(cos, sin)[:, :, None]
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape).astype(x.dtype)


def _table_from_float64(config, end, dtype=np.float32):
    return tuple(t.astype(dtype) for t in precompute_freqs_cis(config, end, np.float64))


def _product(x, w):
    return jnp.matmul(x, w.T, precision=HIGHEST)


def _sums_in_four_parts(x, w):
    part = lambda i: _product(at_least_float32(x[..., i::4]), at_least_float32(w[:, i::4]))
    return ((part(0) + part(1)) + (part(2) + part(3))).astype(x.dtype)


def _sums_in_random_order(x, w):
    order = np.random.default_rng(0).permutation(x.shape[-1])
    return _product(at_least_float32(x[..., order]), at_least_float32(w[:, order])).astype(x.dtype)


def _rms_norm_by_the_norm(x, weight, eps):
    x32, D = at_least_float32(x), x.shape[-1]
    return (x32 * (D**0.5 / jnp.sqrt(jnp.sum(x32 * x32, -1, keepdims=True) + D * eps))).astype(x.dtype) * weight


def _softmax_in_two_blocks(scores):
    s = at_least_float32(scores)
    half = (s.shape[-1] + 1) // 2  # the first block holds slot 0, which every position sees
    top = jnp.max(s[..., :half], -1, keepdims=True)
    both = jnp.maximum(top, jnp.max(s, -1, keepdims=True))
    low = jnp.sum(jnp.exp(s[..., :half] - top), -1, keepdims=True) * jnp.exp(top - both)
    return (jnp.exp(s - both) / (low + jnp.sum(jnp.exp(s[..., half:] - both), -1, keepdims=True))).astype(scores.dtype)


def _repeated(xq, keys, values, mask, tap):
    each = xq.shape[2] // keys.shape[1]
    return attend(xq, jnp.repeat(keys, each, 1), jnp.repeat(values, each, 1), mask, tap)


def _silu_by_tanh(x):
    half = at_least_float32(x) / 2
    return (half * (1 + jnp.tanh(half))).astype(x.dtype)


def _rms_norm_one_by_one(x, weight, eps):
    x32 = at_least_float32(x)
    add = lambda total, column: (total + column * column, None)
    total, _ = jax.lax.scan(add, jnp.zeros(x.shape[:-1], x32.dtype), jnp.moveaxis(x32, -1, 0))
    mean = total[..., None] / x.shape[-1]
    return (x32 * jax.lax.rsqrt(mean + eps)).astype(x.dtype) * weight


def _masked_with(lowest):
    def masked(xq, keys, values, mask, tap):
        return attend(xq, keys, values, mask, lambda name, x: tap(name, jnp.maximum(x, lowest(x))))

    return masked


def _one_token_many_times(tokens):
    return np.full((1, 200), tokens[0, 0], tokens.dtype)


def _a_long_run(tokens):
    """A text in whose middle one token stands as often as all others together."""
    row, half = tokens[0], tokens.shape[1] // 2
    return np.concatenate([row[:half], np.full(len(row), row[half]), row[half:]])[None]


def _a_long_text(tokens):
    return np.resize(tokens[0], (1, 450))


def _in_float64(reference, tokens):
    """Another port's taps, more exact than float32: Meta's weights in double precision."""
    state = {n: p.detach().float().cpu().numpy() for n, p in reference.transformer.state_dict().items()}
    x, taps = truth.wide(state["tok_embeddings.weight"][tokens]), {}
    taps["tok_embeddings"] = x
    for i in range(reference.config.n_layers):
        name = f"layers.{i}."
        of_layer = {k.removeprefix(name).split(".")[-2]: v for k, v in state.items() if k.startswith(name)}
        x, found = truth.layer(LayerWeights(**of_layer), reference.config, x)
        taps |= {full_name(i, op): value for op, value in found.items()}
    weights = XfmrWeights(None, state["norm.weight"], state["output.weight"], ())
    return {n: t.astype(np.float32) for n, t in (taps | truth.head(weights, reference.config, x)).items()}


def _logits_alone(reference, tokens):
    return {"output": reference.taps(tokens)["output"]}


def _with_fused_attention(reference, tokens):
    """Meta's model with torch's scaled_dot_product_attention: in bfloat16 it leaves roundings out."""
    from llama_models.llama3 import model as meta

    def forward(self, x, start_pos, freqs_cis, mask):
        split = lambda z, heads: z.view(*x.shape[:2], heads, self.head_dim)
        q, k = meta.apply_rotary_emb(
            split(self.wq(x), self.n_local_heads), split(self.wk(x), self.n_local_kv_heads), freqs_cis=freqs_cis
        )
        k, v = (meta.repeat_kv(z, self.n_rep) for z in (k, split(self.wv(x), self.n_local_kv_heads)))
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        out = meta.F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.wo(out.transpose(1, 2).reshape(*x.shape[:2], -1))

    before = meta.Attention.forward
    meta.Attention.forward = forward
    try:
        return dict(reference.taps(tokens))
    finally:
        meta.Attention.forward = before


CONTROLS = (
    Fault("C01", "keys and values repeated for each query head", "", replace={"attend": _repeated}),
    Fault("C02", "RoPE as complex numbers", "", replace={"apply_rotary_emb": _rope_as_complex}),
    Fault("C03", "RoPE table from float64", "", replace={"precompute_freqs_cis": _table_from_float64}),
    Fault("C04", "sums in four interleaved parts", "", replace={"linear": _sums_in_four_parts}),
    Fault("C05", "sums in a random order", "", replace={"linear": _sums_in_random_order}),
    Fault("C06", "RMSNorm by the vector's norm", "", replace={"rms_norm": _rms_norm_by_the_norm}),
    Fault("C07", "softmax in two blocks", "", replace={"softmax": _softmax_in_two_blocks}),
    Fault("C08", "SiLU by tanh", "", replace={"silu": _silu_by_tanh}),
    Fault("C09", "the weights that generation uses", "", lambda m: changed(m, weights=m.decode_weights)),
    Fault("C10", "a prompt, a piece and single tokens through the cache", "", mode="cached"),
    Fault("C11", "RMSNorm's squares added one by one", "", replace={"rms_norm": _rms_norm_one_by_one}),
    Fault("C12", "a mask of -1e9", "", replace={"attend": _masked_with(lambda x: -1e9)}),
    Fault("C13", "a mask of the lowest number", "", replace={"attend": _masked_with(lambda x: jnp.finfo(x.dtype).min)}),
    Fault("C14", "one token two hundred times", "", tokens=_one_token_many_times),
    Fault("C15", "a long run of one token in a text", "", tokens=_a_long_run),
    Fault("C16", "the logits alone", "", theirs=_logits_alone),
    Fault("C17", "Meta's model with torch's fused attention", "", theirs=_with_fused_attention),
    Fault("C18", "a port in float64 on a long text", "", tokens=_a_long_text, theirs=_in_float64, needs="float32"),
)  # fmt: skip
