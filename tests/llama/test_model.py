import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.compiler import EXACT
from entropix_lab.llama import model as m

pytestmark = pytest.mark.in_haste

run = jax.jit(lab.xfmr, static_argnames="config", compiler_options=EXACT)
run_with_taps = jax.jit(lab.xfmr_with_taps, static_argnames="config", compiler_options=EXACT)


def tokens_for(model, B, T, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T)), jnp.int32)


def cache_for(model, B, S):
    return lab.KVCache.new(model.config, B, S, model.dtype)


def close(model, a, b):
    tolerance = 2e-5 if model.dtype == "float32" else 0.1
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance * float(np.abs(b).max()))


def test_rms_norm_of_four_numbers():
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    got = m.rms_norm(x, jnp.array([1.0, 1.0, 1.0, 2.0]), 0.5)
    np.testing.assert_allclose(got, np.array([1, 2, 3, 8]) / np.sqrt(7.5 + 0.5), rtol=1e-6)


def test_rms_norm_casts_before_it_scales():
    x = jnp.array([1.0, 3.0, 5.0, 257.0], jnp.bfloat16)
    gain = jnp.array([1.01, 0.77, 1.3, 0.9], jnp.bfloat16)
    normed = np.asarray(x, np.float32) / np.sqrt(np.mean(np.asarray(x, np.float32) ** 2) + 1e-5)
    want = jnp.asarray(normed).astype(jnp.bfloat16) * gain
    assert (m.rms_norm(x, gain, 1e-5) == want).all()


def test_masks_by_hand(tiny):
    _, mask = m.positions_and_mask(tiny.config, 3, jnp.array([0, 2]), 6, jnp.float32)
    want = [
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]],
        [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]],
    ]
    assert (mask[:, 0, 0] == np.array(want, bool)).all()


def test_taps_change_no_bit(tiny):
    tokens = tokens_for(tiny, 2, 9)
    logits, cache = run(tiny.weights, tiny.config, tokens, 0, cache_for(tiny, 2, 12))
    tapped, tapped_cache, taps = run_with_taps(tiny.weights, tiny.config, tokens, 0, cache_for(tiny, 2, 12))
    assert (logits == tapped).all() and (taps["output"] == logits).all()
    assert all((a == b).all() for a, b in zip(cache.k + cache.v, tapped_cache.k + tapped_cache.v, strict=True))
    names = list(taps)
    assert names[:2] == ["tok_embeddings", "layers.0.attention_norm"] and names[-2:] == ["norm", "output"]
    assert len(names) == 3 + 15 * tiny.config.n_layers


def test_one_tap_name_twice_is_refused(tiny32, monkeypatch):
    monkeypatch.setattr(m, "head", lambda weights, config, x, tap: tap("a", tap("a", x)))
    cache = lab.KVCache.new(tiny32.config, 1, 4)
    with pytest.raises(ValueError, match="'a'"):
        lab.xfmr_with_taps(tiny32.weights, tiny32.config, jnp.ones((1, 4), jnp.int32), 0, cache)


@pytest.mark.parametrize("start_pos", [0, 4])
def test_noise_beyond_the_length_changes_no_bit(tiny, start_pos):
    tokens, rng = tokens_for(tiny, 2, 5), np.random.default_rng(1)
    clean = cache_for(tiny, 2, 16)
    if start_pos:
        _, clean = run(tiny.weights, tiny.config, tokens_for(tiny, 2, start_pos, 7), 0, clean)
    beyond = np.arange(16) >= start_pos
    noise = lambda beyond: lambda x: jnp.where(beyond, jnp.asarray(100 * rng.standard_normal(x.shape), x.dtype), x)
    noisy = lab.KVCache(tuple(map(noise(beyond), clean.k)), tuple(map(noise(beyond[:, None]), clean.v)))
    a, _ = run(tiny.weights, tiny.config, tokens, start_pos, clean)
    b, _ = run(tiny.weights, tiny.config, tokens, start_pos, noisy)
    assert (a == b).all()


@pytest.mark.parametrize("chunks", [[12], [5, 3, 4], [8, 1, 1, 1, 1], [1] * 12])
def test_chunks_and_steps_equal_one_pass(tiny, chunks):
    tokens = tokens_for(tiny, 2, 12)
    want, _ = run(tiny.weights, tiny.config, tokens, 0, cache_for(tiny, 2, 12))
    cache, got, start = cache_for(tiny, 2, 16), [], 0
    for T in chunks:
        logits, cache = run(tiny.weights, tiny.config, tokens[:, start : start + T], start, cache)
        got.append(logits)
        start += T
    close(tiny, jnp.concatenate(got, 1), want)


def test_rows_at_different_positions(tiny):
    tokens, lengths = tokens_for(tiny, 3, 8), np.array([2, 7, 4])
    _, cache = run(tiny.weights, tiny.config, tokens, 0, cache_for(tiny, 3, 16))
    step = tokens_for(tiny, 3, 2, seed=5)
    got, _ = run(tiny.weights, tiny.config, step, jnp.asarray(lengths), cache)
    for i, n in enumerate(lengths):
        alone = jnp.concatenate([tokens[i : i + 1, :n], step[i : i + 1]], 1)
        want, _ = run(tiny.weights, tiny.config, alone, 0, cache_for(tiny, 1, n + 2))
        close(tiny, got[i], want[0, -2:])


def test_a_row_is_not_moved_by_its_neighbours(tiny):
    tokens = tokens_for(tiny, 4, 6)
    want, _ = run(tiny.weights, tiny.config, tokens, 0, cache_for(tiny, 4, 6))
    got, _ = run(tiny.weights, tiny.config, tokens.at[1:].set(3), 0, cache_for(tiny, 4, 6))
    assert (got[0] == want[0]).all()


def test_dtypes(tiny):
    tokens = tokens_for(tiny, 1, 4)
    logits, cache = run(tiny.weights, tiny.config, tokens, 0, cache_for(tiny, 1, 4))
    assert logits.dtype == jnp.float32 and str(cache.k[0].dtype) == tiny.dtype
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.weights)
        truth, _, taps = run_with_taps(wide, tiny.config, tokens, 0, lab.KVCache.new(tiny.config, 1, 4, "float64"))
        assert truth.dtype == jnp.float64 and all(x.dtype == jnp.float64 for x in taps.values())
    close(tiny, logits, truth)


def test_a_widened_weight_gives_the_rounded_product():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((3, 64), (16, 64)))
    got = m.linear(x, w.astype(jnp.float32))
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    assert got.dtype == jnp.bfloat16 and (got == jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)).mean() > 0.95


@pytest.mark.parametrize(
    ("tokens", "start_pos", "message"),
    [
        (jnp.zeros((1, 5), jnp.int32), 4, "positions 4 to 8 do not fit a cache of 8 slots.*max_seq_len=9"),
        (jnp.zeros((1, 1), jnp.int32), -1, "positions -1 to -1"),
        (jnp.zeros((1, 1), jnp.int32), np.array([8]), "positions 8 to 8"),
        (jnp.full((1, 2), 128), 0, "token 128 is outside the vocabulary of 128"),
        (jnp.zeros((2, 2), jnp.int32), 0, "the cache has 1 rows, the tokens have 2"),
        (jnp.zeros((1, 0), jnp.int32), 0, r"tokens must be integers \[B,T\]"),
        (jnp.zeros((3,), jnp.int32), 0, r"tokens must be integers \[B,T\]"),
        (jnp.zeros((1, 3)), 0, r"found float32"),
    ],
)
def test_bad_inputs(tiny, tokens, start_pos, message):
    with pytest.raises(ValueError, match=message):
        lab.xfmr(tiny.weights, tiny.config, tokens, start_pos, cache_for(tiny, 1, 8))


def test_a_cache_of_another_dtype_is_refused(tiny_checkpoint):
    model = lab.load_model(tiny_checkpoint(), "bfloat16")
    with pytest.raises(ValueError, match=r'the cache is float32, the weights are bfloat16.*dtype="bfloat16"'):
        lab.xfmr(model.weights, model.config, jnp.zeros((1, 2), jnp.int32), 0, lab.KVCache.new(model.config))


def test_the_defaults_fit_together(tiny_checkpoint):
    folder = tiny_checkpoint("bfloat16")
    weights, config = lab.load_and_convert_weights(folder), lab.load_config(folder)
    assert lab.KVCache.new(config, dtype="bf16").k[0].dtype == jnp.bfloat16
    logits, _ = lab.xfmr(weights, config, jnp.zeros((1, 2), jnp.int32), 0, lab.KVCache.new(config))
    assert weights.norm.dtype == jnp.float32 and logits.shape == (1, 2, 128)


def test_encode(tiny):
    assert tiny.encode([1, 2]).shape == (1, 2)
    with pytest.raises(ValueError, match="no tokenizer.model"):
        tiny.encode("text")
    with pytest.raises(ValueError, match="the prompt is empty"):
        tiny.encode([])
