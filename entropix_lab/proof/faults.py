"""Classical bugs of Llama ports, each a small change around the untouched forward: would the comparison notice?

A fault changes the model (its config, its weights) or stands in for a function of model.py while a program is traced:
there are no flags in the forward. CONTROLS are correct variants of either side, or texts, on which the comparison must
stay silent; none of them is one of the variants that set the floor.
"""

from dataclasses import replace as changed

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoints.safetensors import to_halves
from ..llama.model import (
    apply_rotary_emb,
    at_least_float32,
    attend,
    linear,
    positions_and_mask,
    rms_norm,
    transformer,
    write_rows,
)
from ..llama.rope import precompute_freqs_cis
from . import faulty
from .controls import CONTROLS as CONTROLS
from .trials import Fault


def _config(**fields):
    return lambda model: changed(model, config=changed(model.config, **fields))


def _weights(**change):
    """{field: function of the XfmrWeights that gives its new value}."""
    return lambda model: changed(
        model, weights=model.weights._replace(**{name: f(model.weights) for name, f in change.items()})
    )


def _layers(change):
    """The same change to every LayerWeights, given the config."""
    of = lambda config: lambda w: tuple(change(x, config) for x in w.layer_weights)
    return lambda model: _weights(layer_weights=of(model.config))(model)


FAULTS = (
    Fault("F01", "RoPE pairs (j, j + H/2) with Meta's weights", "layers.0.attention.xq_rope",
          replace={"apply_rotary_emb": faulty.rope_in_halves}, seen="transformers 25199"),
    Fault("F02", "Hugging Face's permuted wq and wk taken for Meta's", "layers.0.attention.wq",
          _layers(lambda w, c: w._replace(wq=to_halves(w.wq, c.head_dim), wk=to_halves(w.wk, c.head_dim))),
          seen="llama2.c 286"),
    Fault("F03", "RoPE scaling missing", "layers.0.attention.xq_rope", _config(use_scaled_rope=False),
          needs="scaled RoPE", seen="felafax 59, TransformerLens 910"),
    Fault("F04", "RoPE scaling by 32 for 8", "layers.0.attention.xq_rope",
          replace={"precompute_freqs_cis": lambda config, end, dtype=np.float32: precompute_freqs_cis(
              changed(config, rope_scaling_factor=32.0), end, dtype)}, needs="scaled RoPE", seen="llama-models 241"),
    Fault("F05", "another rope_theta", "layers.0.attention.xq_rope",
          lambda m: _config(rope_theta=m.config.rope_theta / 10)(m)),
    Fault("F06", "RoPE turns the other way", "layers.0.attention.xq_rope",
          replace={"apply_rotary_emb": lambda x, cos, sin: apply_rotary_emb(x, cos, -sin)}),
    Fault("F07", "keys not rotated", "layers.0.attention.xk_rope", replace=faulty.only_queries_rotate),
    Fault("F08", "RoPE table in bfloat16", "layers.0.attention.xq_rope",
          replace={"precompute_freqs_cis": faulty.table_in_bfloat16}, seen="transformers 29285, 25681"),
    Fault("F09", "positions from 1 on", "layers.0.attention.xq_rope",
          replace={"precompute_freqs_cis": lambda config, end, dtype=np.float32: tuple(
              t[1:] for t in precompute_freqs_cis(config, end + 1, dtype))}, seen="transformers 33095"),
    Fault("F10", "norm_eps 1e-6 for 1e-5", "layers.0.attention_norm", _config(norm_eps=1e-6),
          seen="lit-llama 339, llama.cpp 2384"),
    Fault("F11", "RMSNorm computed in bfloat16", "layers.0.attention_norm",
          replace={"rms_norm": faulty.rms_norm_in_bfloat16}, seen="levanter 606"),
    Fault("F12", "RMSNorm's gain before the cast", "layers.0.attention_norm",
          replace={"rms_norm": faulty.gain_before_the_cast}, needs="bfloat16"),
    Fault("F13", "1 + gain for the gain", "layers.0.attention_norm",
          replace={"rms_norm": lambda x, weight, eps: rms_norm(x, 1 + weight, eps)}),
    Fault("F14", "the mean subtracted, as in LayerNorm", "layers.0.attention_norm",
          replace={"rms_norm": lambda x, weight, eps: rms_norm(x - jnp.mean(x, -1, keepdims=True), weight, eps)}),
    Fault("F15", "attention_norm and ffn_norm swapped", "layers.0.attention_norm",
          _layers(lambda w, c: w._replace(attention_norm=w.ffn_norm, ffn_norm=w.attention_norm))),
    Fault("F16", "key/value heads tiled, not repeated", "layers.0.attention.scores",
          replace={"attend": lambda q, k, v, mask, tap: attend(
              q, *(jnp.tile(x, (1, q.shape[2] // k.shape[1], 1, 1)) for x in (k, v)), mask, tap)},
          seen="jax-js 180, onnx 7274"),
    Fault("F17", "scores divided by H, not by its root", "layers.0.attention.scores",
          replace={"attend": lambda q, k, v, mask, tap: attend(q / q.shape[3] ** 0.5, k, v, mask, tap)}),
    Fault("F18", "causal mask off by one", "layers.0.attention.scores",
          replace=faulty.mask(lambda slots, positions, start, T: slots <= positions + 1)),
    Fault("F19", "causal mask missing", "layers.0.attention.scores",
          replace=faulty.mask(lambda slots, positions, start, T: slots < start + T)),
    Fault("F20", "causal mask aligned top left in a cached piece", "layers.0.attention.scores",
          replace=faulty.mask(lambda slots, positions, start, T: slots <= positions - start), mode="cached",
          seen="mlx 370"),
    Fault("F21", "softmax in bfloat16", "layers.0.attention.probs",
          replace={"softmax": lambda s: jax.nn.softmax(s.astype(jnp.bfloat16), axis=-1).astype(s.dtype)},
          seen="transformers 25420"),
    Fault("F22", "KV cache in bfloat16 under float32 weights", "layers.0.attention.scores",
          replace={"write_rows": lambda slots, rows, start, axis: write_rows(
              slots, rows.astype(jnp.bfloat16).astype(rows.dtype), start, axis)}, needs="float32", seen="entropix"),
    Fault("F23", "a stale cache slot attended", "layers.0.attention.scores",
          replace=faulty.mask(lambda slots, positions, start, T: slots <= positions + (start > 0)), mode="cached"),
    Fault("F24", "a gap of one position after the prompt", "layers.0.attention.xq_rope",
          replace={"positions_and_mask": faulty.gap_after_the_prompt}, mode="cached", seen="entropix"),
    Fault("F25", "wo transposed", "layers.0.attention.wo", _layers(lambda w, c: w._replace(wo=w.wo.T))),
    Fault("F26", "w1 and w3 swapped", "layers.0.feed_forward.w1", _layers(lambda w, c: w._replace(w1=w.w3, w3=w.w1))),
    Fault("F27", "GELU for SiLU", "layers.0.feed_forward.w2",
          replace={"silu": lambda x: jax.nn.gelu(at_least_float32(x)).astype(x.dtype)}),
    Fault("F28", "final norm missing", "norm",
          replace={"head": lambda weights, config, x, tap: tap(
              "output", at_least_float32(linear(tap("norm", x), weights.output)))}, seen="llama-models 172"),
    Fault("F29", "output head not tied where it should be", "output", _weights(output=faulty.untied),
          seen="keras-hub 1895"),
    Fault("F30", "vocabulary shifted by one", "tok_embeddings",
          _weights(tok_embeddings=lambda w: jnp.roll(w.tok_embeddings, 1, axis=0))),
    Fault("F31", "two shards of wq merged on the wrong axis", "layers.0.attention.wq",
          _layers(lambda w, c: w._replace(wq=faulty.merge_on_the_wrong_axis(w.wq)))),
    Fault("F32", "one layer's weights used twice", "layers.{middle}.attention_norm",
          _weights(layer_weights=faulty.twice_the_layer_before)),
    Fault("F33", "the last tile of every product missing", "layers.0.attention.wq",
          replace={"linear": faulty.without_the_last_tile}),
    Fault("F34", "products in TF32", "layers.0.attention.wq",
          replace={"linear": faulty.products_in_tf32}, needs="float32"),
    Fault("F35", "partial sums of products in bfloat16", "layers.0.attention.wq",
          replace={"linear": faulty.partial_sums_rounded}, needs="bfloat16"),
    Fault("F36", "products in TF32 in steps of one token", "layers.0.attention.wq",
          replace={"linear": faulty.in_single_steps(faulty.products_in_tf32)}, mode="cached", needs="float32"),
    Fault("F37", "products in TF32 from the middle of the text on", "layers.0.attention.wq",
          replace={"linear": faulty.tf32_from_the_middle_on}, needs="float32"),
    Fault("F38", "products in bfloat16 in steps of one token", "layers.0.attention.wq",
          replace={"linear": faulty.in_single_steps(faulty.products_in_bfloat16)}, mode="cached", needs="float32"),
    Fault("F39", "partial sums in bfloat16 in steps of one token", "layers.0.attention.wq",
          replace={"linear": faulty.in_single_steps(faulty.partial_sums_rounded)}, mode="cached", needs="bfloat16"),
    Fault("F40", "dropout left on", "layers.0.attention.probs", replace=faulty.with_dropout),
    Fault("F41", "embeddings scaled in the loop over the layers", "tok_embeddings",
          replace={"transformer": lambda weights, *args: transformer(
              weights._replace(tok_embeddings=weights.tok_embeddings * 1.01), *args)}),
    Fault("F42", "RoPE table in bfloat16 in the loop over the layers", "layers.0.attention.xk_rope",
          replace={"transformer": faulty.loop_with_a_bfloat16_table}),
    Fault("F43", "the key caches of two layers swapped", "layers.0.attention.xk_rope",
          replace={"transformer": faulty.key_caches_swapped}, mode="cached"),
    Fault("F44", "one logit of the vocabulary 20 too high", "output", replace={"head": faulty.one_logit}),
    Fault("F45", "w2 of layer 0 times 1.0002, and a later layer in TF32", "layers.0.feed_forward.w2",
          _weights(layer_weights=faulty.first_w2_and_a_noisy_layer), needs="float32"),
    Fault("F46", "RMSNorm averages over the batch", "layers.0.attention_norm",
          replace={"rms_norm": faulty.rms_norm_over_the_batch}),
    Fault("F47", "the first row's positions for all rows", "layers.0.attention.xq_rope",
          replace={"positions_and_mask": lambda config, T, start_pos, S, dtype: positions_and_mask(
              config, T, jnp.full_like(start_pos, start_pos[0]), S, dtype)}, mode="cached"),
    Fault("F48", "attention gives nothing where the batch is one row", "layers.0",
          replace={"attend": lambda q, k, v, mask, tap: attend(q, k, v, mask, tap) * (0 if len(q) == 1 else 1)}),
)  # fmt: skip
