"""Classical bugs of Llama ports, each a small change around the untouched forward: would the comparison notice?

A fault changes the model (its config, its weights) or stands in for a function of model.py while a program is traced:
there are no flags in the forward. CONTROLS are correct variants on which the comparison must stay silent. Like a fault
they stand for ours in the whole comparison; none of them is one of the variants that set the floor.
"""

from collections.abc import Callable
from dataclasses import replace as changed
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compare import compare_programs
from .model import (
    apply_rotary_emb,
    at_least_float32,
    attend,
    head,
    positions_and_mask,
    rms_norm,
    softmax,
    transformer,
    write_rows,
)
from .passes import INNOCENT, Programs, replaced
from .report import VIEWS, Report
from .rope import precompute_freqs_cis
from .weights import LayerWeights, linear


class Finding(NamedTuple):
    """expected and found: taps ("none" where there is no divergence); views: those in which the tap found is beyond its
    limit, limit_ratio: how many times, the furthest. allclose, flips of the argmax and the largest KL (nats) are of the
    logits."""

    name: str
    what: str
    expected: str
    found: str
    views: tuple[str, ...]
    limit_ratio: float
    allclose: bool
    flips: int
    kl_max: float


class Fault(NamedTuple):
    """A named change. change: Model -> Model; replace: functions of model.py, or config -> those; tap: the first value
    that must differ; needs: what a checkpoint or dtype must have for the fault to exist there; seen: where it was;
    tokens and theirs, of controls: the ids [B,T] that are compared, given a prompt's, and what they are compared with,
    given the reference and these ids."""

    name: str
    what: str
    tap: str
    change: Callable = lambda model: model
    replace: dict | Callable = {}
    mode: str = "prefill"
    needs: str = ""
    seen: str = ""
    tokens: Callable | None = None
    theirs: Callable | None = None

    def compare(self, model, reference, prompts) -> Report:
        """The Report of model with this fault in it: first_divergence.tap should be self.first_tap(model)."""
        return next(self.reports(model, reference, [prompts]))

    def reports(self, model, reference, prompts_of_each):
        """A Report for each prompt: those of one length share their compiled programs."""
        replace = self.replace(model.config) if callable(self.replace) else self.replace
        changed_model, programs = self.change(model), Programs(tuple(replace.items())) if replace else INNOCENT
        for prompts in prompts_of_each:
            prompts = self.tokens(model.encode(prompts)) if self.tokens else prompts
            other = self.theirs(reference, model.encode(prompts)) if self.theirs else reference
            yield compare_programs(changed_model, other, prompts, self.mode, programs)

    def first_tap(self, model) -> str:
        """The first value that this fault changes in this model."""
        return self.tap.format(middle=model.config.n_layers // 2)

    def finding(self, model, report) -> "Finding":
        """What a report of this fault says, and what the logits alone would have said."""
        row, out = report.first_divergence, report.output
        views = [view for view in VIEWS if row and getattr(row, view).limit_ratio > 1]
        return Finding(
            self.name,
            self.what,
            self.first_tap(model),
            row.tap if row else "none",
            tuple(views),
            row.limit_ratio if row else max(r.limit_ratio for r in report.rows),
            out.allclose,
            out.positions - out.argmax_equal,
            out.kl_max,
        )

    def exists_in(self, model) -> bool:
        """Whether this model and dtype can have the fault at all."""
        have = {model.dtype} | ({"scaled RoPE"} if model.config.use_scaled_rope else set())
        return not self.needs or self.needs in have


def _config(**fields):
    return lambda model: changed(model, config=changed(model.config, **fields))


def _weights(**change):
    """{field: function of the XfmrWeights that gives its new value}."""
    return lambda model: changed(
        model, weights=model.weights._replace(**{name: f(model.weights) for name, f in change.items()})
    )


def _layers(change):
    """The same change to every LayerWeights, given the config."""
    return lambda model: _weights(layer_weights=lambda w: tuple(change(x, model.config) for x in w.layer_weights))(
        model
    )


def _without_the_last_tile(x, w):
    """A product that leaves out the last eighth of its sum."""
    kept = x.shape[-1] * 7 // 8
    return linear(x[..., :kept], w[:, :kept])


def _products_in_tf32(x, w):
    """What a GPU makes of float32 unless it is told otherwise: ten bits of fraction in, float32 sums."""
    if x.dtype != jnp.float32:
        return linear(x, w)
    return linear(*(jax.lax.reduce_precision(z, exponent_bits=8, mantissa_bits=10) for z in (x, w)))


def _partial_sums_rounded(x, w):
    """Sums cut into four, whose parts meet in x's dtype."""
    a, b, c, d = (linear(*part) for part in zip(jnp.split(x, 4, -1), jnp.split(w, 4, -1), strict=True))
    return a + b + c + d


def _in_single_steps(product):
    """A product that only a step of one token takes."""
    return lambda x, w: product(x, w) if x.shape[1] == 1 else linear(x, w)


def _products_in_bfloat16(x, w):
    return linear(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)).astype(x.dtype)


def _tf32_from_the_middle_on(x, w):
    half = x.shape[1] // 2
    return jnp.concatenate([linear(x[:, :half], w), _products_in_tf32(x[:, half:], w)], 1)


class _LayerInTF32(LayerWeights):
    def qkv(self, x):
        return tuple(_products_in_tf32(x, w) for w in (self.wq, self.wk, self.wv))

    def gate_up(self, x):
        return _products_in_tf32(x, self.w1), _products_in_tf32(x, self.w3)


def _first_w2_and_a_noisy_layer(weights):
    layers, i = list(weights.layer_weights), len(weights.layer_weights) // 2
    layers[0], layers[i] = layers[0]._replace(w2=layers[0].w2 * (1 + 2e-4)), _LayerInTF32(*layers[i])
    return tuple(layers)


def _with_dropout(config):
    """Another mask for every program, as a generator's state at tracing gives it."""
    masks = np.random.default_rng(0)

    def dropout(scores):
        probs = softmax(scores)
        return probs * jnp.asarray((masks.random(probs.shape[1:]) > 0.1) / 0.9, probs.dtype)

    return {"softmax": dropout}


def _embeddings_scaled(weights, *args):
    return transformer(weights._replace(tok_embeddings=weights.tok_embeddings * 1.01), *args)


def _loop_with_a_bfloat16_table(*args):
    with replaced([("precompute_freqs_cis", _table_in_bfloat16)]):
        return transformer(*args)


def _key_caches_swapped(*args):
    x, cache = transformer(*args)
    k, i = list(cache.k), len(cache.k) // 2
    k[0], k[i] = k[i], k[0]
    return x, cache._replace(k=tuple(k))


def _one_logit(weights, config, x, tap):
    return head(
        weights, config, x, lambda name, z: tap(name, z.at[..., 198 % z.shape[-1]].add(20) if name == "output" else z)
    )


def _rms_norm_over_the_batch(x, weight, eps):
    x32 = at_least_float32(x)
    mean = jnp.mean(x32 * x32, (0, -1), keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + eps)).astype(x.dtype) * weight


def _permute_as_hugging_face(w, heads):
    """Rows of every head from Meta's pairs (2j, 2j+1) to (j, j + H/2)."""
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def _merge_on_the_wrong_axis(w):
    """Two shards of a matrix that was split by rows, laid side by side."""
    return jnp.concatenate(jnp.split(w, 2, axis=0), axis=1).reshape(w.shape)


def _twice_the_layer_before(weights):
    layers, i = list(weights.layer_weights), len(weights.layer_weights) // 2
    layers[i] = layers[i - 1]
    return tuple(layers)


def _untied(weights):
    shape, dtype = weights.output.shape, weights.output.dtype
    return (jax.random.normal(jax.random.key(0), shape) * jnp.std(at_least_float32(weights.output))).astype(dtype)


def _rope_in_halves(x, cos, sin):
    x1, x2 = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x.dtype)


@lru_cache
def _only_queries_rotate(config):
    rotate = lambda x, cos, sin: x if x.shape[2] == config.n_kv_heads else apply_rotary_emb(x, cos, sin)
    return {"apply_rotary_emb": rotate}


def _scaling_by_32(config, end, dtype=np.float32):
    return precompute_freqs_cis(changed(config, rope_scaling_factor=32.0), end, dtype)


def _table_in_bfloat16(config, end, dtype=np.float32):
    return tuple(t.astype(jnp.bfloat16).astype(dtype) for t in precompute_freqs_cis(config, end, dtype))


def _positions_from_one(config, end, dtype=np.float32):
    return tuple(t[1:] for t in precompute_freqs_cis(config, end + 1, dtype))


def _rms_norm_in_bfloat16(x, weight, eps):
    low = x.astype(jnp.bfloat16)
    return (low * jax.lax.rsqrt(jnp.mean(low * low, -1, keepdims=True) + eps)).astype(x.dtype) * weight


def _gain_before_the_cast(x, weight, eps):
    x32 = at_least_float32(x)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps) * at_least_float32(weight)).astype(
        x.dtype
    )


def _head_without_norm(weights, config, x, tap):
    return tap("output", at_least_float32(linear(tap("norm", x), weights.output)))


def _mask(sees):
    """positions_and_mask with another mask: sees(slots [S], positions [B,1,1,T,1], start_pos, T) -> live."""

    def replacement(config, T, start_pos, S, dtype):
        positions = (start_pos[:, None] + jnp.arange(T))[:, None, None, :, None]
        live = sees(jnp.arange(S), positions, start_pos[:, None, None, None, None], T)
        freqs_cis, right = positions_and_mask(config, T, start_pos, S, dtype)
        return freqs_cis, jnp.broadcast_to(live, right.shape)

    return {"positions_and_mask": replacement}


def _gap_after_the_prompt(config, T, start_pos, S, dtype):
    freqs_cis, _ = positions_and_mask(config, T, start_pos + (start_pos > 0), S + 1, dtype)
    return freqs_cis, positions_and_mask(config, T, start_pos, S, dtype)[1]


def _tiled(xq, keys, values, live, tap):
    each = xq.shape[2] // keys.shape[2]
    return attend(xq, jnp.tile(keys, (1, 1, each, 1)), jnp.tile(values, (1, 1, each, 1)), live, tap)


FAULTS = (
    Fault("F01", "RoPE pairs (j, j + H/2) with Meta's weights", "layers.0.attention.xq_rope",
          replace={"apply_rotary_emb": _rope_in_halves}, seen="transformers 25199"),
    Fault("F02", "Hugging Face's permuted wq and wk taken for Meta's", "layers.0.attention.wq",
          _layers(lambda w, c: w._replace(wq=_permute_as_hugging_face(w.wq, c.n_heads),
                                          wk=_permute_as_hugging_face(w.wk, c.n_kv_heads))), seen="llama2.c 286"),
    Fault("F03", "RoPE scaling missing", "layers.0.attention.xq_rope", _config(use_scaled_rope=False),
          needs="scaled RoPE", seen="felafax 59, TransformerLens 910"),
    Fault("F04", "RoPE scaling by 32 for 8", "layers.0.attention.xq_rope",
          replace={"precompute_freqs_cis": _scaling_by_32}, needs="scaled RoPE", seen="llama-models 241"),
    Fault("F05", "another rope_theta", "layers.0.attention.xq_rope",
          lambda m: _config(rope_theta=m.config.rope_theta / 10)(m)),
    Fault("F06", "RoPE turns the other way", "layers.0.attention.xq_rope",
          replace={"apply_rotary_emb": lambda x, cos, sin: apply_rotary_emb(x, cos, -sin)}),
    Fault("F07", "keys not rotated", "layers.0.attention.xk_rope", replace=_only_queries_rotate),
    Fault("F08", "RoPE table in bfloat16", "layers.0.attention.xq_rope",
          replace={"precompute_freqs_cis": _table_in_bfloat16}, seen="transformers 29285, 25681"),
    Fault("F09", "positions from 1 on", "layers.0.attention.xq_rope",
          replace={"precompute_freqs_cis": _positions_from_one}, seen="transformers 33095"),
    Fault("F10", "norm_eps 1e-6 for 1e-5", "layers.0.attention_norm", _config(norm_eps=1e-6),
          seen="lit-llama 339, llama.cpp 2384"),
    Fault("F11", "RMSNorm computed in bfloat16", "layers.0.attention_norm",
          replace={"rms_norm": _rms_norm_in_bfloat16}, seen="levanter 606"),
    Fault("F12", "RMSNorm's gain before the cast", "layers.0.attention_norm",
          replace={"rms_norm": _gain_before_the_cast}, needs="bfloat16"),
    Fault("F13", "1 + gain for the gain", "layers.0.attention_norm",
          replace={"rms_norm": lambda x, weight, eps: rms_norm(x, 1 + weight, eps)}),
    Fault("F14", "the mean subtracted, as in LayerNorm", "layers.0.attention_norm",
          replace={"rms_norm": lambda x, weight, eps: rms_norm(x - jnp.mean(x, -1, keepdims=True), weight, eps)}),
    Fault("F15", "attention_norm and ffn_norm swapped", "layers.0.attention_norm",
          _layers(lambda w, c: w._replace(attention_norm=w.ffn_norm, ffn_norm=w.attention_norm))),
    Fault("F16", "key/value heads tiled, not repeated", "layers.0.attention.scores", replace={"attend": _tiled},
          seen="jax-js 180, onnx 7274"),
    Fault("F17", "scores divided by H, not by its root", "layers.0.attention.scores",
          replace={"attend": lambda q, k, v, live, tap: attend(q / q.shape[3] ** 0.5, k, v, live, tap)}),
    Fault("F18", "causal mask off by one", "layers.0.attention.scores",
          replace=_mask(lambda slots, positions, start, T: slots <= positions + 1)),
    Fault("F19", "causal mask missing", "layers.0.attention.scores",
          replace=_mask(lambda slots, positions, start, T: slots < start + T)),
    Fault("F20", "causal mask aligned top left in a cached piece", "layers.0.attention.scores",
          replace=_mask(lambda slots, positions, start, T: slots <= positions - start), mode="cached", seen="mlx 370"),
    Fault("F21", "softmax in bfloat16", "layers.0.attention.probs",
          replace={"softmax": lambda s: jax.nn.softmax(s.astype(jnp.bfloat16), axis=-1).astype(s.dtype)},
          seen="transformers 25420"),
    Fault("F22", "KV cache in bfloat16 under float32 weights", "layers.0.attention.scores",
          replace={"write_rows": lambda slots, rows, start: write_rows(
              slots, rows.astype(jnp.bfloat16).astype(rows.dtype), start)}, needs="float32", seen="entropix"),
    Fault("F23", "a stale cache slot attended", "layers.0.attention.scores",
          replace=_mask(lambda slots, positions, start, T: slots <= positions + (start > 0)), mode="cached"),
    Fault("F24", "a gap of one position after the prompt", "layers.0.attention.xq_rope",
          replace={"positions_and_mask": _gap_after_the_prompt}, mode="cached", seen="entropix"),
    Fault("F25", "wo transposed", "layers.0.attention.wo", _layers(lambda w, c: w._replace(wo=w.wo.T))),
    Fault("F26", "w1 and w3 swapped", "layers.0.feed_forward.w1", _layers(lambda w, c: w._replace(w1=w.w3, w3=w.w1))),
    Fault("F27", "GELU for SiLU", "layers.0.feed_forward.w2",
          replace={"silu": lambda x: jax.nn.gelu(at_least_float32(x)).astype(x.dtype)}),
    Fault("F28", "final norm missing", "norm", replace={"head": _head_without_norm}, seen="llama-models 172"),
    Fault("F29", "output head not tied where it should be", "output", _weights(output=_untied), seen="keras-hub 1895"),
    Fault("F30", "vocabulary shifted by one", "tok_embeddings",
          _weights(tok_embeddings=lambda w: jnp.roll(w.tok_embeddings, 1, axis=0))),
    Fault("F31", "two shards of wq merged on the wrong axis", "layers.0.attention.wq",
          _layers(lambda w, c: w._replace(wq=_merge_on_the_wrong_axis(w.wq)))),
    Fault("F32", "one layer's weights used twice", "layers.{middle}.attention_norm",
          _weights(layer_weights=_twice_the_layer_before)),
    Fault("F33", "the last tile of every product missing", "layers.0.attention.wq",
          replace={"linear": _without_the_last_tile}),
    Fault("F34", "products in TF32", "layers.0.attention.wq", replace={"linear": _products_in_tf32}, needs="float32"),
    Fault("F35", "partial sums of products in bfloat16", "layers.0.attention.wq",
          replace={"linear": _partial_sums_rounded}, needs="bfloat16"),
    Fault("F36", "products in TF32 in steps of one token", "layers.0.attention.wq",
          replace={"linear": _in_single_steps(_products_in_tf32)}, mode="cached", needs="float32"),
    Fault("F37", "products in TF32 from the middle of the text on", "layers.0.attention.wq",
          replace={"linear": _tf32_from_the_middle_on}, needs="float32"),
    Fault("F38", "products in bfloat16 in steps of one token", "layers.0.attention.wq",
          replace={"linear": _in_single_steps(_products_in_bfloat16)}, mode="cached", needs="float32"),
    Fault("F39", "partial sums in bfloat16 in steps of one token", "layers.0.attention.wq",
          replace={"linear": _in_single_steps(_partial_sums_rounded)}, mode="cached", needs="bfloat16"),
    Fault("F40", "dropout left on", "layers.0.attention.probs", replace=_with_dropout),
    Fault("F41", "embeddings scaled in the loop over the layers", "tok_embeddings",
          replace={"transformer": _embeddings_scaled}),
    Fault("F42", "RoPE table in bfloat16 in the loop over the layers", "layers.0.attention.xk_rope",
          replace={"transformer": _loop_with_a_bfloat16_table}),
    Fault("F43", "the key caches of two layers swapped", "layers.0.attention.xk_rope",
          replace={"transformer": _key_caches_swapped}, mode="cached"),
    Fault("F44", "one logit of the vocabulary 20 too high", "output", replace={"head": _one_logit}),
    Fault("F45", "w2 of layer 0 times 1.0002, and a later layer in TF32", "layers.0.feed_forward.w2",
          _weights(layer_weights=_first_w2_and_a_noisy_layer), needs="float32"),
    Fault("F46", "RMSNorm averages over the batch", "layers.0.attention_norm",
          replace={"rms_norm": _rms_norm_over_the_batch}),
)  # fmt: skip


def _rope_as_complex(x, cos, sin):
    pairs = x.astype(cos.dtype).reshape(*x.shape[:-1], -1, 2)
    turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jax.lax.complex(cos, sin)[:, :, None]
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape).astype(x.dtype)


def _table_from_float64(config, end, dtype=np.float32):
    return tuple(t.astype(dtype) for t in precompute_freqs_cis(config, end, np.float64))


def _sums_in_four_parts(x, w):
    part = lambda i: at_least_float32(x[..., i::4]) @ at_least_float32(w[:, i::4]).T
    return ((part(0) + part(1)) + (part(2) + part(3))).astype(x.dtype)


def _sums_in_random_order(x, w):
    order = np.random.default_rng(0).permutation(x.shape[-1])
    return (at_least_float32(x[..., order]) @ at_least_float32(w[:, order]).T).astype(x.dtype)


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


def _repeated(xq, keys, values, live, tap):
    each = xq.shape[2] // keys.shape[2]
    return attend(xq, jnp.repeat(keys, each, 2), jnp.repeat(values, each, 2), live, tap)


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
    def masked(xq, keys, values, live, tap):
        return attend(xq, keys, values, live, lambda name, x: tap(name, jnp.maximum(x, lowest(x))))

    return masked


def _one_token_many_times(tokens):
    return np.full((1, 200), tokens[0, 0], tokens.dtype)


def _a_long_run(tokens):
    """A text in whose middle one token stands as often as all others together."""
    row, half = tokens[0], tokens.shape[1] // 2
    return np.concatenate([row[:half], np.full(len(row), row[half]), row[half:]])[None]


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
)  # fmt: skip
