import dataclasses
import json

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import entropix_lab as lab
from entropix_lab.llama.model import rms_norm
from entropix_lab.llama.rope import apply_scaling
from entropix_lab.proof import comparison
from entropix_lab.proof.greedy import Decoded, Greedy
from entropix_lab.proof.measure import relative_error
from entropix_lab.proof.report import VIEWS
from entropix_lab.proof.taps import tap_names, tap_shape

pytestmark = pytest.mark.in_haste

TOKENS = np.random.default_rng(0).integers(0, 128, (1, 24))


@pytest.fixture(scope="module")
def pair(tiny_checkpoint):
    folder = tiny_checkpoint(n_layers=12)
    return lab.load_model(folder), lab.load_reference(folder)


@pytest.fixture(scope="module")
def shallow(tiny_checkpoint):
    """Three layers, for what is about rows and not about depth: they compile in half the time."""
    folder = tiny_checkpoint()
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
    assert [row.tap for row in report.suspects] == ["layers.7.feed_forward.w2"]
    assert report.explain().startswith(
        "First divergence: layers.7.feed_forward.w2, the feed-forward's output; it reads "
        "layers.7.feed_forward.w1 and layers.7.feed_forward.w3."
    )
    beyond = [row.tap for row in report.rows if row.local.limit_ratio > 1]
    assert beyond == ["layers.7.feed_forward.w2", "layers.7"]  # the local view keeps it in its layer
    late = sum(row.accumulated.limit_ratio > 1 for row in report.rows)
    assert late > 40 if dtype == "float32" else late < 5  # one row in 64 drowns in bfloat16's accumulated noise


def test_each_view_sees_what_the_coarser_ones_do_not(pair):
    model, reference = pair
    w2, tap = model.weights.layer_weights[7].w2, "layers.7.feed_forward.w2"

    def seen_by(report, *views):
        without = [view for view in ("accumulated", "local", "op") if view not in views]
        rows = [dataclasses.replace(r, **{view: r.accumulated for view in without}) for r in report.rows]
        where = dataclasses.replace(report, rows=tuple(rows)).first_divergence
        return where and where.tap

    one_row = lab.compare(with_layer(model, 7, w2=w2.at[3].multiply(1 + 2.5e-5)), reference, TOKENS)
    assert seen_by(one_row, "accumulated", "local", "op") == tap and not seen_by(one_row, "accumulated", "local")
    whole = lab.compare(with_layer(model, 7, w2=w2 * (1 + 3e-6)), reference, TOKENS)
    assert seen_by(whole, "accumulated", "local") == tap and not seen_by(whole, "accumulated")


def test_a_wrong_eps_is_found_under_the_tasks_allclose(pair):
    model, reference = pair
    wrong = dataclasses.replace(model, config=dataclasses.replace(model.config, norm_eps=2e-5))
    report = lab.compare(wrong, reference, TOKENS)
    assert report.output.allclose  # what a fixed tolerance would have said
    assert report.first_divergence.tap == "layers.0.attention_norm"


def test_reference_as_a_path_or_as_taps(pair):
    model, reference = pair
    want = lab.compare(model, reference, TOKENS)
    assert lab.compare(model, model.path, TOKENS) == want
    taps = lab.compare(model, reference.taps(TOKENS), TOKENS)
    numbers = lambda report: [(r.tap, r.accumulated.error, r.local.limit, r.op.floor) for r in report.rows]
    assert numbers(taps) == numbers(want) and taps.output == want.output


def test_a_mask_that_differs_is_no_rounding(pair):
    model, reference = pair
    taps = reference.taps(TOKENS)
    taps["layers.3.attention.scores"][0, 0, 5, 5] = -np.inf
    report = lab.compare(model, taps, TOKENS)
    assert report.first_divergence.tap == "layers.3.attention.scores"
    assert "masked where the reference's is not, or the reverse" in report.explain()
    assert "furthest at token 5 of row 0" in report.explain()


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
    taps["layers.0.extra"] = taps["layers.0"]
    with pytest.raises(ValueError, match=r"unknown taps \['layers\.0\.extra'\]"):
        lab.compare(model, taps, TOKENS)
    taps = {"norm": taps["norm"][:, :-1]}
    with pytest.raises(ValueError, match=r"norm: expected the shape \(1, 24, 64\), the reference has \(1, 23, 64\)"):
        lab.compare(model, taps, TOKENS)
    with pytest.raises(ValueError, match="no taps"):
        lab.compare(model, {}, TOKENS)
    with pytest.raises(ValueError, match="rows of at least 5 tokens, the shortest has 4"):
        lab.compare(model, reference, TOKENS[:, :4], mode="cached")
    with pytest.raises(ValueError, match="model.py has no function 'fused' to replace"):
        lab.compare(model, reference, TOKENS, replace={"fused": len})
    with pytest.raises(ValueError, match=r"mode must be one of \('prefill', 'cached'\), found 'decode'"):
        lab.compare(model, reference, TOKENS, mode="decode")
    with pytest.raises(ValueError, match="model.py has no function 'rmsnorm' to replace"):
        lab.compare(model, reference, TOKENS, replace={"rmsnorm": len})
    with pytest.raises(ValueError, match="mapping of taps, found NoneType"):
        lab.compare(model, None, TOKENS)
    for kept in (torch.zeros(1, 24, 128, dtype=torch.bfloat16), torch.zeros(1, 24, 128, requires_grad=True)):
        with pytest.raises(ValueError, match=r"output: NumPy cannot read .*x\.detach\(\)\.float\(\)"):
            lab.compare(model, {"output": kept}, TOKENS)
    with pytest.raises(ValueError, match="output: expected floats, found int64"):
        lab.compare(model, {"output": np.zeros((1, 24, 128), int)}, TOKENS)
    with pytest.raises(ValueError, match=r"one row of token ids to a prompt, found an array of \(2, 24\)"):
        lab.compare(model, reference, [np.repeat(TOKENS, 2, 0)])
    with pytest.raises(ValueError, match=r"token ids \[T\] or \[B,T\], found float64"):
        lab.compare(model, reference, TOKENS * 1.0)


def test_another_model_is_refused(pair, tiny_checkpoint):
    model, _ = pair
    smaller = lab.load_reference(tiny_checkpoint())
    for function in (lab.compare, lab.compare_greedy):
        with pytest.raises(ValueError, match="n_layers is 12 in the model, 3 in the reference"):
            function(model, smaller, TOKENS)
        with pytest.raises(ValueError, match="the model is float32, the reference bfloat16"):
            function(model, lab.load_reference(model.path, "bfloat16"), TOKENS)
    with pytest.raises(ValueError, match="compare_greedy has no sampler"):
        lab.compare_greedy(model, model.path, TOKENS, sampler=lab.samplers.greedy())


def test_what_is_not_on_trial_runs_once(pair):
    model, reference = pair
    wrong = {"rms_norm": lambda x, weight, eps: rms_norm(x, weight, 1e-6)}
    alone, judged = lab.compare(model, reference, TOKENS, replace=wrong), {}
    assert lab.compare(model, reference, TOKENS, judged=judged).passed
    assert lab.compare(model, reference, TOKENS, replace=wrong, judged=judged).to_json() == alone.to_json()
    with pytest.raises(ValueError, match="judged: expected the runs of this model, mode and prompts, found others"):
        lab.compare(model, reference, TOKENS[:, 1:], judged=judged)


def of_views(report, name):
    """[taps,views,2]: the error, limit or floor of every tap in every view, (median, worst)."""
    return np.array([[getattr(getattr(row, view), name) for view in VIEWS] for row in report.rows])


def test_the_compiler_takes_over_the_noise_of_a_comparison_that_passed(pair):
    model, reference = pair
    alone, passed, failed = lab.compare_compiler(model, TOKENS), {}, {}
    assert lab.compare(model, reference, TOKENS, judged=passed).passed
    wrong = {"rms_norm": lambda x, weight, eps: rms_norm(x, weight, 1e-3)}
    assert not lab.compare(model, reference, TOKENS, replace=wrong, judged=failed).passed
    assert lab.compare_compiler(model, TOKENS, judged=failed).to_json() == alone.to_json()
    shared = lab.compare_compiler(model, TOKENS, judged=passed)
    assert np.array_equal(of_views(shared, "error"), of_views(alone, "error"))
    ratio = of_views(shared, "limit") / of_views(alone, "limit")  # the inputs differ by rounding, and so does the noise
    assert 0.5 < ratio.min() and ratio.max() < 2


def test_the_noise_of_a_comparison_that_lacks_taps_is_not_taken_over(pair, our_taps):
    model, _ = pair
    taps = our_taps(model, TOKENS)
    some, judged = {name: x for name, x in taps.items() if name.startswith("layers.1") or name == "output"}, {}
    assert lab.compare(model, some, TOKENS, judged=judged).passed and not judged["passed"]
    assert lab.compare_compiler(model, TOKENS, judged=judged).to_json() == lab.compare_compiler(model, TOKENS).to_json()


TWO_ROWS = np.random.default_rng(1).integers(0, 128, (2, 24))
FIRST_NORM = "layers.0.attention_norm"


@pytest.mark.parametrize(
    ("tokens", "row", "tap"),
    [(TOKENS, 0, "layers.0.attention.wv"), (TOKENS, -1, FIRST_NORM), (TWO_ROWS, 1, FIRST_NORM)],
)
@pytest.mark.parametrize("mode", ["prefill", "cached"])
def test_what_is_wrong_with_one_row_alone_is_named(shallow, tokens, row, tap, mode):
    """Layers run with other rows around those of the tokens; of a single row the whole program shows what it caches."""
    wrong = lambda x, weight, eps: (y := rms_norm(x, weight, eps)).at[row].set(y[row] * 1.01)
    assert lab.compare(*shallow, tokens, mode, replace={"rms_norm": wrong}).first_divergence.tap == tap


@pytest.mark.parametrize("shift", [1, -1])
def test_what_is_read_from_the_row_beside_is_named(shallow, shift):
    wrong = {"rms_norm": lambda x, weight, eps: jnp.roll(rms_norm(x, weight, eps), shift, 0)}
    assert lab.compare(*shallow, TOKENS, replace=wrong).first_divergence.tap == FIRST_NORM


@pytest.mark.parametrize("mode", ["prefill", "cached"])
def test_view_by_view_is_the_same(pair, mode, monkeypatch):
    """As long texts go, for their memory."""
    prompts, wrong = [TWO_ROWS[0], TWO_ROWS[1, :9]], {"rms_norm": lambda x, weight, eps: rms_norm(x, weight, 1e-3)}
    together = lab.compare(*pair, prompts, mode)
    monkeypatch.setattr(comparison, "TOGETHER", 1)
    alone, faulty = lab.compare(*pair, prompts, mode), lab.compare(*pair, prompts, mode, replace=wrong)
    assert alone.passed and together.passed and faulty.first_divergence.tap == FIRST_NORM
    np.testing.assert_allclose(of_views(alone, "limit"), of_views(together, "limit"), rtol=0.5)
    assert (abs(of_views(alone, "error") - of_views(together, "error")) <= of_views(together, "floor") + 1e-6).all()


def test_a_function_on_trial_keeps_the_dtype(pair, shallow):
    model, reference = pair
    narrow_at_last = lambda x, weight, eps: rms_norm(x, weight, eps).astype("f4" if x.shape[1] > 1 else jnp.bfloat16)
    with pytest.raises(ValueError, match="(?s)fails in the run '.*' .TypeError.*return the dtype that it is given"):
        lab.compare(*shallow, TOKENS, "cached", replace={"rms_norm": narrow_at_last})
    narrow = lambda x, weight, eps: rms_norm(x, weight, eps).astype(jnp.bfloat16)
    with pytest.raises(ValueError, match=r"layers\.0\.attention_norm: ours is bfloat16, expected float32"):
        lab.compare(model, reference, TOKENS, replace={"rms_norm": narrow})
    takes = "(?s)fails in the run 'whole' .TypeError.* must take the arguments of the function of model.py"
    with pytest.raises(ValueError, match=takes):
        lab.compare(model, reference, TOKENS, replace={"rms_norm": lambda x, weight: x})
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.probs: ours is bfloat16, expected float32"):
        lab.compare(model, reference, TOKENS, replace={"softmax": lambda s: jax.nn.softmax(s.astype(jnp.bfloat16), -1)})


def test_a_table_on_trial_may_be_jaxs(pair):
    def table(config, end, dtype=np.float32):
        freqs = dtype(config.rope_theta) ** (-np.arange(0, config.head_dim, 2, dtype=dtype) / dtype(config.head_dim))
        freqs = apply_scaling(freqs) if config.use_scaled_rope else freqs
        angles = jnp.outer(jnp.arange(end, dtype=dtype), freqs)
        return jnp.cos(angles), jnp.sin(angles)

    assert lab.compare(*pair, TOKENS, replace={"precompute_freqs_cis": table}).passed


@pytest.mark.parametrize(("name", "dtype"), [("F34", "float32"), ("F35", "bfloat16")])
def test_low_precision_is_no_rounding_of_another_port(tiny_checkpoint, name, dtype):
    """Its distance says so, and how far from the truth it lies beside the reference."""
    folder = tiny_checkpoint(dtype)
    model, reference = lab.load_model(folder, dtype), lab.load_reference(folder, dtype)
    fault = next(f for f in lab.faults.FAULTS if f.name == name)
    report = fault.compare(model, dict(reference.taps(TOKENS)), TOKENS)
    assert report.first_divergence.tap == "layers.0.attention.wq"
    assert report.first_divergence.op.error > report.first_divergence.op.limit
    assert report.first_divergence.op.error_ratio > {"float32": (100, 100), "bfloat16": (1.5, 1.5)}[dtype]


def test_a_few_positions_have_no_median(shallow):
    model, reference = shallow
    report = lab.compare(model, reference, [37])
    row = report["layers.0.attention.wq"].op
    assert report.passed and row.limit[0] == pytest.approx(6 * row.floor[0])
    row = lab.compare(model, reference, TOKENS)["layers.0.attention.wq"].op
    assert row.limit[0] == pytest.approx(3 * row.floor[0])


def test_allclose_alone_can_fail(pair):
    report = lab.compare(*pair, TOKENS)
    report = dataclasses.replace(report, output=dataclasses.replace(report.output, allclose=False))
    assert not report.passed and "Only allclose(rtol=0.001, atol=0.01) on the logits fails." in report.explain()


def test_no_such_tap(pair):
    model, reference = pair
    with pytest.raises(KeyError, match="no tap 'layers.12'"):
        lab.compare(model, {"norm": reference.taps(TOKENS)["norm"]}, TOKENS)["layers.12"]


def test_the_schema_is_what_both_models_yield(pair, our_taps):
    model, reference = pair
    theirs, ours = reference.taps(TOKENS), our_taps(model, TOKENS)
    assert list(theirs) == list(ours) == tap_names(12)
    for name in theirs:
        assert theirs[name].shape == ours[name].shape == tap_shape(name, model.config, 1, 24), name


def test_taps_from_a_file_and_not_all_of_them(pair, tmp_path):
    model, reference = pair
    taps = {name: x for name, x in reference.taps(TOKENS).items() if name.startswith("layers.4") or name == "output"}
    np.savez(tmp_path / "taps.npz", **taps)
    report = lab.compare(model, np.load(tmp_path / "taps.npz"), TOKENS)
    assert report.passed and [row.tap for row in report.rows] == list(taps)
    taps["layers.4"] = taps["layers.4"] * 1.001
    report = lab.compare(model, taps, TOKENS)
    assert report.first_divergence.tap == "layers.4" and "the stream after the layer" in report.explain()
    assert "the error is made here" in report.explain() and " of the reference's (167 were" in report.verdict
    del taps["layers.4.h_attn"]
    report = lab.compare(model, taps, TOKENS)
    assert "in what was not tapped: layers.4.h_attn and whatever that reads." in report.explain()
    assert not report.suspects
    report = lab.compare(model, {name: taps[name] * 2 for name in ("output",)}, TOKENS)
    assert "in what was not tapped: norm and whatever that reads." in report.explain()
    with pytest.raises(ValueError, match=r"output: expected floats, found \|V2: save taps as float32"):
        lab.compare(model, {"output": np.zeros((1, 24, 128), "V2")}, TOKENS)


@pytest.mark.parametrize("mode", ["prefill", "cached"])
def test_rows_of_different_lengths(shallow, mode):
    model, reference = shallow
    rows = [TOKENS[0], TOKENS[0, 5:12], TOKENS[0, 3:20]]
    report = lab.compare(model, reference, rows, mode)
    assert report.passed and report.output.positions == 24 + 7 + 17
    padded = np.zeros((3, 24), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    taps = reference.taps(padded)
    for name in taps:  # what lies in the padding is nobody's business
        axis = 2 if name.endswith((".scores", ".probs")) else 1
        np.moveaxis(taps[name], axis, 1)[1, 7:] = np.nan
    assert lab.compare(model, taps, rows, mode).passed


def test_greedy(pair):
    model, reference = pair
    prompts = [TOKENS[0], TOKENS[0, :9]]
    report = lab.compare_greedy(model, reference, prompts, max_new_tokens=12)
    assert report.passed and "2 of 2 prompts equal to Meta's over 12 tokens; 0 ties" in report.verdict
    wrong = dataclasses.replace(model, weights=model.weights._replace(norm=model.weights.norm[::-1]))
    report = lab.compare_greedy(wrong, reference, prompts, max_new_tokens=12)
    assert not report.passed and "parts at token 0 where the margin is" in report.verdict


def test_a_tie_is_no_failure_and_many_are():
    part = lambda ties, flips: Decoded(40, tuple(range(ties)), (0.1,) * ties, (0.05,) * ties, flips)
    greedy = lambda *rows: Greedy("m", "bfloat16", rows)
    assert greedy(part(1, 0), Decoded(40)).passed and "1 of 2 prompts" in greedy(part(1, 0), Decoded(40)).verdict
    assert greedy(part(6, 4)).passed and not greedy(part(6, 0)).passed
    assert "6 ties within rounding, too many" in greedy(part(6, 0)).verdict
    assert not greedy(Decoded(40, (3,), (0.5,), (0.1,))).passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_has_power(tiny_checkpoint, dtype):
    """A margin that is small beside the largest logit is no tie: the other's token must lie within measured noise."""
    folder = tiny_checkpoint(dtype)
    model, reference = lab.load_model(folder, dtype), lab.load_reference(folder, dtype)
    prompts = [TOKENS[0, i : i + 8] for i in range(8)]
    assert lab.compare_greedy(model, reference, prompts, max_new_tokens=16).passed
    H = model.config.head_dim
    headless = with_layer(model, 1, wo=model.weights.layer_weights[1].wo.at[:, :H].set(0))
    assert not lab.compare_greedy(headless, reference, prompts, max_new_tokens=16).passed
    deaf = lab.Reference(reference.transformer, reference.config, reference.dtype, reference.device)
    deaf.greedy = lambda tokens, n: np.full(n, 123, np.int32)
    assert not lab.compare_greedy(model, deaf, prompts, max_new_tokens=16).passed


def test_relative_error():
    y = np.ones((1, 2, 2, 3), np.float32)
    y[0, 0, 0, 1:] = -np.inf
    x = y.copy()
    x[0, 1, 1, 2] = 1.5
    assert np.allclose(relative_error("a.scores", x, y), [[0, 0.5 / 6**0.5]])
    x[0, 1, 0, 1] = -np.inf
    assert np.array_equal(relative_error("a.scores", x, y)[0, :1], [np.inf])
    assert relative_error("a.xq_rope", y[..., :1], y[..., :1]).shape == (1, 2)


def test_a_massive_position_does_not_hide_the_others(pair):
    model, reference = pair
    massive, small = TOKENS[0, 0], 3e-5
    table = model.weights.tok_embeddings.at[massive].multiply(1e4)
    weights = model.weights._replace(tok_embeddings=table, output=table)
    model = dataclasses.replace(model, weights=weights)
    table = reference.transformer.tok_embeddings.weight
    kept = table.detach().clone()
    try:
        with torch.no_grad():
            table[massive] *= 1e4
        taps = reference.taps(TOKENS)
    finally:
        with torch.no_grad():
            table[:] = kept
    assert lab.compare(model, taps, TOKENS).passed
    stream = taps["layers.5"]
    before = stream.copy()
    stream[0, 3] *= 1 + small
    row = lab.compare(model, taps, TOKENS).first_divergence
    assert row.tap == "layers.5" and row.worst_position == (0, 3)
    # one norm over the whole tensor would have taken it for rounding
    assert np.linalg.norm(stream - before) / np.linalg.norm(stream) < row.op.limit[0]


@pytest.mark.parametrize("tap", ["layers.4.attention.wq", "layers.7.feed_forward.w2", "output"])
def test_the_limit_is_where_it_says(pair, tap):
    model, reference = pair
    taps = reference.taps(TOKENS)
    limit = lab.compare(model, taps, TOKENS)[tap].op.limit[0]
    noise = np.random.default_rng(0).normal(size=taps[tap].shape)
    noise *= np.linalg.norm(taps[tap], axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    moved = lambda times: lab.compare(model, taps | {tap: (taps[tap] + times * limit * noise).astype("f4")}, TOKENS)
    assert moved(0.3).passed
    assert moved(3).first_divergence.tap == tap


def test_figures_are_drawn(pair):
    model, reference = pair
    report = lab.compare(model, reference, TOKENS)
    taps, layers, ops = reference.taps(TOKENS), range(model.config.n_layers), list(lab.taps.OPS)
    same, row_of = np.testing.assert_array_equal, lambda i, op: report[f"layers.{i}.{op}".rstrip(".")]
    whole, local, every = lab.plots.layer_diff(report)
    for ax, view in ((whole, "accumulated"), (local, "local")):
        same(ax.lines[2].get_ydata(), [getattr(row_of(i, ""), view).error[0] or np.nan for i in layers])
    ratios = np.array([[row_of(i, op).op.limit_ratio for i in layers] for op in ops])
    np.testing.assert_allclose(10 ** every.images[0].get_array(), np.clip(ratios, 0.01, 10), rtol=1e-9)
    row = report["layers.1.attention.wq"]
    bars = lab.plots.three_views(report, row.tap)[1].lines
    for bar, dot, view in zip(bars[::2], bars[1::2], VIEWS, strict=True):
        same(bar.get_xdata(), [getattr(row, view).floor[0], getattr(row, view).limit[0]])
        same(dot.get_xdata(), max(getattr(row, view).error[0], 1e-12))
    noise = {op: row_of(1, op).op.error[0] for op in ops}
    same(lab.plots.op_noise({"ours": noise}).lines[0].get_xdata(), list(noise.values()))
    first = [np.linalg.norm(taps[f"layers.{i}"][0, 0]) for i in layers]
    np.testing.assert_allclose(lab.plots.stream_norms(taps).lines[0].get_ydata(), first, rtol=1e-6)
    sizes = dict.fromkeys(("tok_embeddings", "w1, w2, w3", "wq, wo", "wk, wv", "norm"), 0)
    for name, x in lab.weights.by_name(model.weights).items():
        if name != "output.weight":  # the embeddings
            sizes[next(kind for kind in sizes if any(part in name for part in kind.split(", ")))] += x.size / 1e6
    widths = [bar.get_width() for bar in lab.plots.tensor_sizes(model.config).patches]
    np.testing.assert_allclose(widths, list(sizes.values()), rtol=1e-9)
    probs = taps["layers.0.attention.probs"][0]
    for ax, of_head in zip(lab.plots.attention_map(probs, [str(t) for t in TOKENS[0]]).flat, probs, strict=False):
        same(ax.images[0].get_array().filled(0), np.tril(of_head))
    plt.close("all")


def test_a_full_gpu_names_what_jax_takes_of_it(pair, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pair[1].transformer, "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA") as error:
        pair[1].logits(TOKENS)
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in error.value.__notes__[0]


def test_the_references_greedy_takes_one_prompt_in_either_shape(pair):
    _, reference = pair
    assert np.array_equal(reference.greedy(TOKENS, 4), reference.greedy(TOKENS[0], 4))
    with pytest.raises(ValueError, match=r"expected one prompt \[T\] or \[1,T\], found token ids of \(2, 24\)"):
        reference.greedy(np.repeat(TOKENS, 2, 0), 4)
