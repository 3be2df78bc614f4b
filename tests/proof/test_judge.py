"""What could deceive a comparison, or make it fail for no reason, does neither."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.llama import model as forward
from entropix_lab.llama.model import rms_norm
from entropix_lab.proof import truth
from entropix_lab.proof.faults import FAULTS
from entropix_lab.proof.measure import Samples, direct_of, relative_error
from entropix_lab.proof.passes import whole_taps

pytestmark = pytest.mark.in_haste

TOKENS = np.random.default_rng(0).integers(0, 128, (1, 24))


@pytest.fixture(scope="module")
def pair(tiny_checkpoint):
    folder = tiny_checkpoint()
    return lab.load_model(folder), lab.load_reference(folder)


def scaled_norm(by):
    return lambda x, weight, eps: rms_norm(x, weight, eps) * by


def test_the_truth_is_the_formula(pair):
    """Two writers, one in NumPy, one in JAX, agree to float64's rounding."""
    model, _ = pair
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), model.weights)
        logits = whole_taps(dataclasses.replace(model, weights=wide), TOKENS)[0]["output"]
    assert np.abs(np.asarray(logits) - truth.forward(model.weights, model.config, TOKENS)).max() < 1e-12


def test_a_wrong_truth_is_said_to_be_wrong(pair, monkeypatch):
    model, reference = pair
    linear = truth.linear

    def off(x, w):
        y = linear(x, w)
        y[..., 0] += 3e-3
        return y

    monkeypatch.setattr(truth, "linear", off)
    report = lab.compare(model, reference, TOKENS)
    assert not report.passed and report.truth_divergence.tap == "layers.0.attention.wq"
    assert "the float64 truth is wrong at layers.0.attention.wq" in report.verdict
    assert "the truth is wrong there" in report.explain()
    # nor does it hide a fault of its size
    wq = model.weights.layer_weights[0].wq
    layers = (model.weights.layer_weights[0]._replace(wq=wq.at[1].multiply(1 + 5e-4)), *model.weights.layer_weights[1:])
    faulty = dataclasses.replace(model, weights=model.weights._replace(layer_weights=layers))
    assert lab.compare(faulty, reference, TOKENS).first_divergence.tap == "layers.0.attention.wq"


def test_a_wrong_truth_in_bfloat16(tiny_checkpoint, monkeypatch):
    folder = tiny_checkpoint("bfloat16")
    model, reference = lab.load_model(folder, "bfloat16"), lab.load_reference(folder, "bfloat16")
    silu = truth.silu
    monkeypatch.setattr(truth, "silu", lambda x: silu(x) * 1.001)
    report = lab.compare(model, reference, TOKENS)
    assert not report.passed and report.truth_divergence.tap == "layers.0.feed_forward.w2"


def test_whoever_patches_the_forward_is_no_judge(pair, monkeypatch):
    model, reference = pair
    monkeypatch.setattr(forward, "rms_norm", scaled_norm(1 + 1e-5))
    report = lab.compare(model, reference, TOKENS)
    assert report.first_divergence.tap == "layers.0.attention_norm"


def test_a_function_rewritten_in_its_place(pair, monkeypatch):
    """What a reload of the module does, after programs of the old code were compiled."""
    model, reference = pair
    assert lab.compare(model, reference, TOKENS).passed
    monkeypatch.setattr(forward.silu, "__code__", (lambda x: x * 0).__code__)
    assert lab.compare(model, reference, TOKENS).first_divergence.tap == "layers.0.feed_forward.w2"


def test_a_product_that_somebody_patched(pair, monkeypatch):
    model, reference = pair
    assert lab.compare(model, reference, TOKENS).passed
    linear = forward.linear
    monkeypatch.setattr(forward, "linear", lambda x, w: linear(x, w) * 1.01)
    assert lab.compare(model, reference, TOKENS).first_divergence.tap == "layers.0.attention.wq"


def test_a_slot_beyond_the_text_that_is_read(pair):
    model, reference = pair

    def beyond(config, T, start_pos, S, dtype):
        freqs_cis, mask = forward_mask(config, T, start_pos, S, dtype)
        return freqs_cis, mask | (jnp.arange(S) >= 128)

    forward_mask = forward.positions_and_mask
    report = lab.compare(model, reference, TOKENS, "cached", {"positions_and_mask": beyond})
    assert report.first_divergence.tap == "layers.0"


def test_a_function_whose_closure_changed_is_traced_anew(pair):
    model, reference = pair
    by = [1.0]
    norm = lambda x, weight, eps: rms_norm(x, weight, eps) * by[0]
    assert lab.compare(model, reference, TOKENS, replace={"rms_norm": norm}).passed
    by[0] = 1.001
    assert not lab.compare(model, reference, TOKENS, replace={"rms_norm": norm}).passed


def test_a_function_that_calls_the_one_it_replaces(pair):
    model, reference = pair
    same = lambda x, weight, eps: forward.rms_norm(x, weight, eps)
    assert lab.compare(model, reference, TOKENS, replace={"rms_norm": same}).passed
    assert forward.rms_norm is rms_norm


def test_a_noisy_layer_does_not_hide_another(pair):
    model, reference = pair
    report = next(f for f in FAULTS if f.name == "F45").compare(model, reference, TOKENS)
    suspects = [row.tap for row in report.suspects]
    assert report.first_divergence.tap == "layers.0.feed_forward.w2"
    assert "layers.0.feed_forward.w2" in suspects and "layers.1.attention.wq" in suspects


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_wrong_logit_is_named_by_the_logits_too(tiny_checkpoint, dtype):
    folder = tiny_checkpoint(dtype)
    model, reference = lab.load_model(folder, dtype), lab.load_reference(folder, dtype)
    report = next(f for f in FAULTS if f.name == "F44").compare(model, reference, TOKENS)
    assert report.first_divergence.tap == "output"
    assert "argmaxes differ by more than rounding" in report.verdict and "KL is" in report.verdict
    assert not dataclasses.replace(report, rows=()).passed


def test_what_was_not_compared_does_not_pass(pair):
    model, reference = pair
    taps = reference.taps(TOKENS)
    for nothing in ({}, {"output": None}):
        with pytest.raises(ValueError, match="the reference has no taps"):
            lab.compare(model, nothing, TOKENS)
    some = {name: x for name, x in taps.items() if name.startswith("layers.0")}
    report = lab.compare(model, some, TOKENS)
    assert report.first_divergence is None and not report.passed
    assert "15 of 48 taps within rounding of the reference's (33 were not compared)" in report.verdict
    assert "without output nothing passes" in report.verdict and "without output nothing passes" in report.explain()
    assert lab.compare(model, {"output": taps["output"]}, TOKENS).passed


def test_numbers_whose_square_is_none():
    y = np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float32)
    for scale in (1e20, 1e-20):
        assert np.allclose(relative_error("x", y * 1.01 * np.float32(scale), y * np.float32(scale)), 0.01, rtol=1e-3)


def test_what_no_ratio_can_say():
    number, zero, infinite, nan = (np.full((1, 1, 2), x, np.float32) for x in (3, 0, np.inf, np.nan))
    of = lambda x, y: relative_error("x", x, y).item()
    assert (of(number, zero), of(zero, zero), of(infinite, number)) == (1, 0, np.inf)
    assert np.isnan([of(nan, zero), of(number, nan), of(infinite, infinite)]).all()


def test_nan_under_a_mask_is_named():
    y = np.ones((1, 1, 2, 2), np.float32)
    y[0, 0, 0, 1] = -np.inf
    x = np.where(y < 0, np.float32(np.nan), y)
    direct = direct_of({"attention.scores": x}, {"attention.scores": y})["attention.scores"]
    assert direct.nan_ours.tolist() == [[True, False]] and not direct.nan_theirs.any()


def test_one_mask_or_another():
    y = np.ones((1, 1, 2, 3), np.float32)
    y[0, 0, 0, 1:] = -np.inf
    for lowest in (-1e9, np.finfo(np.float32).min, -65504):
        assert np.array_equal(relative_error("a.scores", np.maximum(y, lowest), y), [[0, 0]])
        assert np.array_equal(relative_error("a.scores", y, np.maximum(y, lowest)), [[0, 0]])
    assert np.array_equal(relative_error("a.scores", np.maximum(y, -5), y), [[np.inf, 0]])


def test_a_token_that_comes_often_is_one_sample():
    tokens, errors = np.array([[7, 7, 7, 7, 7, 1, 2, 3]]), np.array([[9.0, 9, 9, 9, 9, 1, 2, 3]])
    samples = Samples(tokens, np.ones_like(tokens, bool))
    assert samples.different == 4 and samples.of(errors) == (2.5, 9)
    assert Samples(np.arange(8)[None], np.ones((1, 8), bool)).of(np.arange(8.0)[None]) == (3.5, 7)


def test_words_for_what_went_wrong(pair):
    model, reference = pair
    taps = reference.taps(TOKENS)
    for dtype in (jnp.bfloat16, np.float16):
        low = {name: np.asarray(x).astype(dtype) for name, x in taps.items() if not name.endswith("scores")}
        with pytest.raises(ValueError, match=f"the model is float32, this tap holds {jnp.dtype(dtype).name}"):
            lab.compare(model, low, TOKENS)
        kept = {name: x.astype(np.float32) for name, x in low.items()}
        with pytest.raises(ValueError, match=f"attention_norm: .* this tap holds numbers of {jnp.dtype(dtype).name}"):
            lab.compare(model, kept, TOKENS)
    others = reference.taps((TOKENS + 1) % 128)
    told = lab.compare(model, others, TOKENS).explain()
    assert f"at token 0 of row 0 it has the embedding of id {TOKENS[0, 0] + 1}" in told
    nan = {name: x.copy() for name, x in taps.items()}
    nan["layers.1"][0, 5, 5] = np.nan
    assert "The reference has NaN there." in lab.compare(model, nan, TOKENS).explain()
    with pytest.raises(ValueError, match="replace: expected a dict of .*, found list"):
        lab.compare(model, reference, TOKENS, replace=[rms_norm])
    with pytest.raises(ValueError, match=r"unknown taps \['x', 1\]"):
        lab.compare(model, {1: taps["output"], "x": taps["output"]}, TOKENS)
