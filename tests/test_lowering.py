"""What every program would be on a GPU and on a TPU, read off its lowering on this machine, which needs neither."""

import re

import jax
import jax.numpy as jnp
import pytest

import entropix_lab as lab
from entropix_lab.entropy.trace import _trace_piece
from entropix_lab.generation.branching import UntilFork
from entropix_lab.generation.step import first, read, step
from entropix_lab.proof.passes import Programs

V, D, B, T, S = 128256, 32, 2, 16, 32
CONFIG = lab.LlamaConfig(D, 2, 4, V, 32, 1e-5, 500000.0, n_kv_heads=2, ffn_dim_multiplier=None, use_scaled_rope=True)
SAMPLERS = {
    "greedy": lab.samplers.greedy(),
    "nucleus": lab.samplers.sample(0.8, top_k=40, top_p=0.9, min_p=0.02),
    "adaptive": lab.samplers.adaptive(clarifying=None),
    "dirichlet": lab.samplers.dirichlet(V),
    "branch": UntilFork(lab.samplers.dirichlet(V), lab.samplers.adaptive("9d41be6"), 0.1),
}


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def weights(dtype):
    of = lambda *shape: array(*shape, dtype=dtype)
    H = CONFIG.head_dim
    layer = lab.LayerWeights(
        of(D, D),
        of(2 * H, D),
        of(2 * H, D),
        of(D, D),
        of(CONFIG.ffn_dim, D),
        of(D, CONFIG.ffn_dim),
        of(CONFIG.ffn_dim, D),
        of(D),
        of(D),
    )
    return lab.XfmrWeights(of(V, D), of(D), of(V, D), (layer,) * CONFIG.n_layers)


def programs(dtype):
    """(name, jitted function, its arguments) of each."""
    w, tokens, at = weights(dtype), array(B, T, dtype="int32"), array(B, dtype="int32")
    cache = jax.eval_shape(lambda: lab.KVCache.new(CONFIG, B, S, dtype))
    jit = lambda f: jax.jit(f, static_argnames="config")
    yield "xfmr", jit(lab.xfmr), (w, CONFIG, tokens, 0, cache)
    yield "xfmr_with_taps", jit(lab.xfmr_with_taps), (w, CONFIG, tokens, 0, cache)
    yield "trace_text", _trace_piece, (w, CONFIG, tokens, tokens, 0, cache, True, True)
    for watch in (None, (True,)):
        yield f"read {watch}", read, (w, CONFIG, tokens, at, at, cache, watch)
    prompt, _ = read.eval_shape(w, CONFIG, tokens, at, at, cache, (True,))
    for name, sampler in SAMPLERS.items():
        state, seeds = jax.eval_shape(lambda s=sampler: s.init(B)), array(B, dtype="uint32")
        for trace in (None, ("attention", "lens")):
            yield f"{name} {trace}, first", first, (w, CONFIG, sampler, prompt, at, state, seeds, trace)
            token = array(B, 1, dtype="int32")
            yield f"{name} {trace}", step, (w, CONFIG, sampler, token, at, cache, state, seeds, 0, trace)
    ours, x, forced = Programs(), array(B, T, D, dtype=dtype), array(B, dtype="bool")
    keys, values = cache.k[0], cache.v[0]
    yield "layer", ours.layer, (w.layer_weights[0], CONFIG, x, at, keys, values, {}, forced)
    yield "head", ours.head, (w, CONFIG, x, {}, forced)
    yield "whole", ours.whole, (w, CONFIG, tokens, at, cache)


def wrong(text):
    """What does not belong into a program for an accelerator, in words."""
    found = []
    for line in re.findall(r"stablehlo\.dot_general.*", text):
        of_float32 = re.search(r": \(tensor<[^>]*f32>, tensor<[^>]*f32>\)", line)
        if of_float32 and "precision = [HIGHEST, HIGHEST]" not in line:
            found.append(f"a product of float32 in less than float32: {line}")
    sorts = re.findall(r"stablehlo\.sort.*?\}\) : (\([^)]*\))", text, re.DOTALL)
    found += [f"a sort of the vocabulary: {operands}" for operands in sorts if str(V) in operands]
    found += [f"a call of the host: {s}" for s in re.findall(r"custom_call.*(?:callback|python).*", text)]
    return found + [f"float64: {s}" for s in re.findall(r".*(?:tensor<f64>|xf64>).*", text)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_program_on_an_accelerator(dtype):
    for name, function, args in programs(dtype):
        text = function.trace(*args).lower(lowering_platforms=("cuda", "tpu")).as_text()
        assert not (found := wrong(text)), f"{name}: {found[:3]}"
        assert "dot_general" in text


def test_what_it_looks_for_is_seen():
    x = array(4, V)
    lowered = lambda f, *args: jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "product" in wrong(lowered(lambda x: x @ x.T, x))[0]
    assert "sort" in wrong(lowered(lambda x: jnp.sort(x)[:, :5], x))[0]
    assert "sort" in wrong(lowered(lambda x: jnp.argsort(x)[:, :5], x))[0]
    call = lambda x: jax.pure_callback(lambda x: x, x, x)
    assert "host" in wrong(jax.jit(call).lower(x).as_text())[0]  # for another platform it raises
    with jax.enable_x64(True):
        assert "float64" in wrong(lowered(lambda x: x.astype("float64"), x))[0]
    assert not wrong(lowered(lambda x: jax.lax.top_k(x, 5), x))
