"""Our forward beside Meta's own, every tap, on tiny random checkpoints in the official format and on the demo model."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import entropix_lab as lab
from entropix_lab.proof.measure import relative_error

pytestmark = pytest.mark.in_haste

HEADS = {"MHA": (4, 4), "GQA": (4, 2), "MQA": (4, 1), "GQA, odd scale": (2, 1)}  # head_dim 16, 16, 16, 32
TOKENS = np.random.default_rng(0).integers(0, 128, (2, 11))


# every pair of two settings comes in some case
CASES = [
    (heads, scaled, tied, dtype)
    for i, heads in enumerate(HEADS)
    for scaled, tied, dtype in (
        (True, bool(i % 2), "float32"),
        (False, not i % 2, "bfloat16"),
        (bool(i % 2), i < 2, "float32" if i in (0, 3) else "bfloat16"),
    )
]


def test_the_cases_hold_every_pair():
    every = list(itertools.product(HEADS, [True, False], [True, False], ["float32", "bfloat16"]))
    for a, b in itertools.combinations(range(4), 2):
        assert {(case[a], case[b]) for case in CASES} == {(case[a], case[b]) for case in every}


@pytest.mark.parametrize(("heads", "scaled", "tied", "dtype"), CASES)
def test_every_tap_equals_metas(tiny_checkpoint, our_taps, heads, scaled, tied, dtype):
    n_heads, n_kv_heads = HEADS[heads]
    folder = tiny_checkpoint(dtype, n_heads=n_heads, n_kv_heads=n_kv_heads, use_scaled_rope=scaled, tied=tied)
    model, reference = lab.load_model(folder, dtype), lab.load_reference(folder, dtype)
    ours, metas = our_taps(model, TOKENS), reference.taps(TOKENS)
    assert list(ours) == list(metas)
    for name, theirs in metas.items():
        # float32: tens of ulp of each position's norm; bfloat16: a few roundings of it
        error = relative_error(name, ours[name], theirs)
        assert error.max() < (5e-6 if dtype == "float32" else 1.5e-2), name


@pytest.mark.parametrize("shards", [2, 4])
def test_a_sharded_checkpoint(tiny_checkpoint, shards):
    folder = tiny_checkpoint(shards=shards, n_kv_heads=4, tied=False)
    assert lab.compare(lab.load_model(folder), folder, TOKENS).passed


def test_metas_cache_and_ours_step_by_step(tiny_checkpoint):
    folder = tiny_checkpoint()
    model, reference = lab.load_model(folder), lab.load_reference(folder)
    cache = lab.KVCache.new(model.config, 2, 11)
    for start, end in [(0, 6), (6, 9), (9, 10), (10, 11)]:
        chunk = TOKENS[:, start:end]
        logits, cache, taps = lab.xfmr_with_taps(model.weights, model.config, jnp.asarray(chunk), start, cache)
        metas = reference.taps(chunk, start)
        np.testing.assert_allclose(np.asarray(logits), metas["output"], atol=1e-5)
        for name in metas:
            if name.endswith(".scores"):  # ours span the cache, Meta's what is written
                assert np.array_equal(np.isneginf(taps[name][..., :end]), np.isneginf(metas[name]))
                assert np.isneginf(taps[name][..., end:]).all()


def test_the_demo_model_speaks(demo, demo_reference):
    tokens = demo.encode("The capital of France is")
    assert demo.tokenizer.decode(int(demo_reference.logits(tokens)[0, -1].argmax())) == " Paris"
    report = lab.compare(demo, demo_reference, tokens)
    assert report.passed and report["output"].rel_l2_worst < 1e-5 and report.output.argmax_equal == tokens.size


def test_reference_leaves_no_global_changed(tiny_checkpoint):
    import sys

    from llama_models.llama3 import model as meta

    watched = lambda: (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.initial_seed(),
        torch.get_rng_state().sum().item(),
        meta.apply_rotary_emb,
        meta.F,
        sys.excepthook,
        torch.distributed.is_initialized(),
    )
    before = watched()
    reference = lab.load_reference(tiny_checkpoint(), dtype="bfloat16")
    reference.taps(TOKENS)
    with pytest.raises(ValueError, match=r"expected token ids below 128, found 0 to 128"):
        reference.taps([[0, 128]])
    assert watched() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in reference.transformer.modules())


def test_reference_errors(tiny_checkpoint):
    reference = lab.load_reference(tiny_checkpoint(), max_seq_len=8, max_batch_size=1)
    with pytest.raises(ValueError, match=r"do not fit the reference's cache of 1 rows and 8 slots"):
        reference.logits(TOKENS[:1])
    with pytest.raises(ValueError, match=r"do not fit"):
        reference.logits(TOKENS[:, :2])


def test_get_local_llama_logits(tiny_checkpoint):
    folder = tiny_checkpoint()
    logits = lab.get_local_llama_logits(TOKENS[0], folder)
    assert logits.shape == (1, 11, 128) and logits.dtype == np.float32
    assert np.allclose(logits, lab.load_reference(folder).logits(TOKENS[:1]))


def test_the_jitted_programs_do_not_depend_on_the_default_precision(tiny_checkpoint):
    folder = tiny_checkpoint()
    with jax.default_matmul_precision("bfloat16"):
        assert lab.compare(lab.load_model(folder), lab.load_reference(folder), TOKENS).passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_that_generate_uses_are_the_same_model(tiny_checkpoint, our_taps, dtype):
    folder = tiny_checkpoint(dtype, tied=False)
    model = lab.load_model(folder, dtype)
    fused = dataclasses.replace(model, weights=model.decode_weights)
    taps, want = our_taps(fused, TOKENS), lab.load_reference(folder, dtype).taps(TOKENS)
    assert list(taps) == list(want)
    for name, theirs in want.items():
        error = relative_error(name, taps[name], theirs)
        assert error.max() < (5e-6 if dtype == "float32" else 1.5e-2), name
