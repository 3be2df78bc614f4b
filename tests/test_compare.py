import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.compare import per_position

TOKENS = np.random.default_rng(0).integers(0, 128, (1, 24))


@pytest.fixture(scope="module")
def pair(tiny_checkpoint):
    folder = tiny_checkpoint(n_layers=12)
    return lab.load_model(folder), lab.load_reference(folder)


def with_layer(model, i, **change):
    layers = list(model.weights.layer_weights)
    layers[i] = layers[i]._replace(**change)
    return dataclasses.replace(model, weights=model.weights._replace(layer_weights=tuple(layers)))


def test_pass(pair):
    report = lab.compare(*pair, TOKENS)
    assert report.passed and report.first_divergence is None
    assert report.verdict.startswith("PASS tiny float32: 183 of 183 taps within rounding of Meta's; ")
    assert [row.tap for row in report.rows][-17:-15] == ["layers.11.attention_norm", "layers.11.attention.wq"]
    assert json.loads(json.dumps(report.to_json()))["passed"]
    assert "jax" in report.environment and "<table>" in report._repr_html_()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fault_is_found_where_it_is(tiny_checkpoint, dtype):
    folder = tiny_checkpoint(dtype, n_layers=12)
    model, reference = lab.load_model(folder, dtype), lab.load_reference(folder, dtype)
    w2 = model.weights.layer_weights[7].w2
    report = lab.compare(with_layer(model, 7, w2=w2.at[3].set(-w2[3])), reference, TOKENS)
    assert not report.passed and report.verdict.startswith("FAIL")
    assert report.first_divergence.tap == "layers.7.feed_forward.w2"
    assert report.verdict.endswith("first divergence: layers.7.feed_forward.w2")


def test_a_wrong_eps_is_found_under_the_tasks_allclose(pair):
    model, reference = pair
    wrong = dataclasses.replace(model, config=dataclasses.replace(model.config, norm_eps=2e-5))
    report = lab.compare(wrong, reference, TOKENS)
    assert report.output.allclose  # what a fixed tolerance would have said
    assert report.first_divergence.tap == "layers.0.attention_norm"


def test_a_tie_is_no_failure_and_a_flip_is(pair):
    report = lab.compare(*pair, TOKENS)
    flipped = lambda margin: dataclasses.replace(
        report, output=dataclasses.replace(report.output, margins_where_different=(margin,))
    )
    assert flipped(report["output"].max_abs).passed and not flipped(0.1).passed


def test_reference_as_a_path_or_as_taps(pair):
    model, reference = pair
    want = lab.compare(model, reference, TOKENS).to_json()
    assert lab.compare(model, model.path, TOKENS).to_json() == want
    assert lab.compare(model, reference.taps(TOKENS), TOKENS).to_json() == want


def test_a_mask_that_differs_is_no_rounding(pair):
    model, reference = pair
    taps = reference.taps(TOKENS)
    taps["layers.3.attention.scores"][0, 0, 5, 5] = -np.inf
    assert lab.compare(model, taps, TOKENS).first_divergence.tap == "layers.3.attention.scores"


def test_nan_is_no_rounding(pair):
    model, reference = pair
    taps = reference.taps(TOKENS)
    taps["layers.3"][0, 5, 5] = np.nan
    assert lab.compare(model, taps, TOKENS).first_divergence.tap == "layers.3"


def test_what_cannot_be_compared(pair):
    model, reference = pair
    scaled = dataclasses.replace(model, config=dataclasses.replace(model.config, rope_scaling_factor=32.0))
    with pytest.raises(ValueError, match="by design"):
        lab.compare(scaled, reference, TOKENS)
    with pytest.raises(ValueError, match="the model is float32, the reference bfloat16"):
        lab.compare(model, lab.load_reference(model.path, "bfloat16"), TOKENS)
    taps = reference.taps(TOKENS)
    taps["layers.0.extra"] = taps.pop("layers.0")
    with pytest.raises(ValueError, match=r"other names.*layers\.0"):
        lab.compare(model, taps, TOKENS)
    taps = reference.taps(TOKENS)
    taps["norm"] = taps["norm"][:, :-1]
    with pytest.raises(ValueError, match=r"norm: expected the shape \(1, 24, 64\), the reference has \(1, 23, 64\)"):
        lab.compare(model, taps, TOKENS)


def test_per_position():
    scores = np.arange(12.0).reshape(1, 2, 2, 3)
    scores[0, 0, 0, 1] = -np.inf
    assert np.array_equal(per_position("a.scores", scores)[0], [[0, 0, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
    assert per_position("a.xq_rope", np.zeros((1, 2, 3, 4))).shape == (1, 2, 12)


def test_a_massive_position_does_not_hide_the_others(pair):
    model, reference = pair
    taps = reference.taps(TOKENS)
    for name in ("layers.5",):
        taps[name] = taps[name].copy()
        taps[name][0, 3] += 0.01  # one position of 24, a hundredth of the stream
    assert lab.compare(model, taps, TOKENS).first_divergence.tap == "layers.5"


def test_figures_are_drawn(pair):
    model, reference = pair
    assert len(lab.plots.layer_diff(lab.compare(model, reference, TOKENS))) == 2
    lab.plots.stream_norms(reference.taps(TOKENS))
    lab.plots.tensor_sizes(model.config)
    lab.plots.attention_map(reference.taps(TOKENS)["layers.0.attention.probs"][0], [str(t) for t in TOKENS[0]])
    plt.close("all")
