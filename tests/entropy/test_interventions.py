from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.entropy import interventions
from entropix_lab.entropy.interventions import writer

pytestmark = pytest.mark.in_haste

PROMPT = [5, 17, 3, 99, 44, 7, 21]


def forward(model, tokens, tap):
    tokens = np.atleast_2d(np.asarray(tokens, np.int32))
    cache = lab.KVCache.new(model.config, len(tokens), tokens.shape[1], model.dtype)
    return np.asarray(lab.xfmr(model.weights, model.config, tokens, 0, cache, tap)[0])


def test_no_change_is_the_model(tiny):
    run, trace = lab.intervene(tiny, PROMPT, {}), lab.trace_text(tiny, PROMPT)
    tolerance = 1e-5 if tiny.dtype == "float32" else 0.05
    np.testing.assert_allclose(run.logits, forward(tiny, PROMPT, lambda name, x: x)[0], atol=tolerance)
    for name, x in vars(trace).items():
        if isinstance(x, np.ndarray) and x.dtype == np.float32:
            np.testing.assert_allclose(getattr(run.trace, name), x, atol=tolerance, err_msg=name)
    assert run.trace.pieces == trace.pieces and run.trace.prompt == trace.prompt


def test_every_tap_can_be_written(tiny32):
    """The change lands where its name says: as the whole forward has it with the same tap, and nowhere else."""
    cache = lab.KVCache.new(tiny32.config, 1, len(PROMPT))
    names = lab.xfmr_with_taps(tiny32.weights, tiny32.config, np.array([PROMPT], np.int32), 0, cache)[2]
    plain, effects = forward(tiny32, PROMPT, lambda name, x: x), set()
    inside = ("wq", "xk_rope", "scores", "probs", "wo", "w1")
    for name in ["tok_embeddings", *(n for n in names if n.endswith(inside) and ".1." in n), "layers.1", "output"]:
        changes = {name: lambda x: jnp.where(jnp.isinf(x), x, x * 0.5 + 0.1)}
        run = lab.intervene(tiny32, PROMPT, changes, keep=[name], trace=False)
        want = forward(tiny32, PROMPT, writer(changes))
        np.testing.assert_allclose(run.logits, want[0], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(run.kept[name].shape, names[name].shape[1:])
        effects.add(float(np.abs(want - plain).max()))
    assert len(effects) == 9 and min(effects) > 1e-4


def test_a_head_without_probabilities_writes_nothing(tiny32):
    """The same as a model whose wo does not read that head."""
    H, (first, second, third) = tiny32.config.head_dim, tiny32.weights.layer_weights
    wo = second.wo.at[:, 2 * H : 3 * H].set(0)
    without = tiny32.weights._replace(layer_weights=(first, second._replace(wo=wo), third))
    run = lab.intervene(tiny32, PROMPT, {"layers.1.attention.probs": lambda p: p.at[:, 2].set(0)})
    cache = lab.KVCache.new(tiny32.config, 1, len(PROMPT))
    want = lab.xfmr(without, tiny32.config, np.array([PROMPT], np.int32), 0, cache)[0][0]
    np.testing.assert_allclose(run.logits, want, atol=1e-5)
    assert np.abs(run.logits - lab.intervene(tiny32, PROMPT, {}).logits).max() > 1e-3


def test_rows_are_patched_each_at_its_position(tiny32):
    """A stream patched after its last layer gives the other prompt's logits there, and changes no other position."""
    other = [9, 8, 7, 6, 5, 4, 3]
    source = lab.intervene(tiny32, other, {}, keep=["layers.2"])
    plain, T = lab.intervene(tiny32, PROMPT, {}), len(PROMPT)
    at = np.arange(T)
    runs = lab.intervene(
        tiny32, [PROMPT] * T, {"layers.2": lambda x: x.at[at, at].set(source.kept["layers.2"])}, trace=False
    )
    for t, run in enumerate(runs):
        assert run.trace is None
        np.testing.assert_allclose(run.logits[t], source.logits[t], atol=1e-5)
        np.testing.assert_allclose(np.delete(run.logits, t, 0), np.delete(plain.logits, t, 0), atol=1e-5)


def test_greedy_tokens_under_a_change(tiny32):
    changes = {"layers.0.attention.scores": lambda s: s.at[..., 0].add(-1e4)}
    run = lab.intervene(tiny32, PROMPT, changes, 6)
    again = lab.intervene(tiny32, run.tokens, changes)  # all at once
    assert len(run.tokens) == 13 and (run.logits[6:-1].argmax(-1) == run.tokens[7:]).all()
    np.testing.assert_allclose(run.logits, again.logits, atol=1e-5)
    np.testing.assert_allclose(run.trace.attention_sink, again.trace.attention_sink, atol=1e-6)
    assert run.trace.attention_sink[1:, 0].max() == 0 < run.trace.attention_sink[1:, 1].min()


def test_errors_name_what_is_wrong(tiny32):
    with pytest.raises(ValueError, match=r"no tap 'layers.1.attention.prob'; near it: layers.1.attention.probs,"):
        lab.intervene(tiny32, PROMPT, {"layers.1.attention.prob": jnp.zeros_like})
    with pytest.raises(ValueError, match="no tap 'layers.3'; near it: layers.2"):
        lab.intervene(tiny32, PROMPT, {}, keep=["layers.3"])
    wrong = {"layers.1": lambda x: x[:, 0]}
    with pytest.raises(
        ValueError, match=r"'layers.1' must return float32 \[1, 7, 64\], as it is given, found float32 \[1"
    ):
        lab.intervene(tiny32, PROMPT, wrong)
    wrong = {"layers.1.attention.probs": lambda p: p.astype("bfloat16")}
    with pytest.raises(ValueError, match=r"must return float32 \[1, 4, 7, 7\], as it is given, found bfloat16"):
        lab.intervene(tiny32, PROMPT, wrong)
    with pytest.raises(ValueError, match="found NoneType"):
        lab.intervene(tiny32, PROMPT, {"layers.1.attention.wo": lambda x: None})


def test_effects_are_differences_of_rows():
    trace = lambda x: SimpleNamespace(trace=SimpleNamespace(surprisal=x, entropy=2 * x, varentropy=0 * x))
    before, after = [np.zeros(4), np.ones(4)], [np.array([9, 1, 1, 1.0]), np.array([9, 4, 4, 4.0])]
    found = lab.effects([trace(x) for x in before], [trace(x) for x in after], slice(1, None))
    half = 12.7062 * np.std([1, 3], ddof=1) / np.sqrt(2)  # Student's 97.5 % with one degree of freedom
    np.testing.assert_allclose(found["surprisal"], (2, half), rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], (4, 2 * half), rtol=1e-5)
    assert found["varentropy"] == (0, 0)
    axes = lab.plots.effects({"one": found, "two": found})
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["one", "two"]
    assert len(lab.plots.layer_effects([found] * 3)) == 3
    plt.close("all")


def test_maps_of_one_unit_share_a_bar_and_its_scale():
    x = np.zeros((3, 2))
    maps = {"a": (x, "probability"), "b": (x + 0.2, "probability"), "c": (x + 0.5, "nats")}
    axes = lab.plots.patching(maps, [0, 3, 6], [" of", "$"], 6)
    bars = [ax.get_ylabel() for ax in axes[0].figure.axes if ax not in axes]
    assert bars == ["probability in both maps, mean of 6 pairs", "nats, mean of 6 pairs"]
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim() == (0, 1)
    assert axes[2].images[0].get_clim() == (0, 0.6)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["·of", r"\$"]
    plt.close("all")


def test_a_sweep_is_each_change_by_itself(tiny, monkeypatch):
    """To the bit, whatever the order; layers that no change reaches are computed once."""
    half, rows = (lambda x: x * jnp.asarray(0.5, x.dtype)), [PROMPT, PROMPT[::-1]]
    names = ["layers.1.feed_forward.w1", "layers.2.attention.wo", "layers.0", "tok_embeddings", "layers.1", "output"]
    changes = [*({name: half} for name in names), {}, {"layers.2": half, "layers.0.h_attn": half}]
    keep = ["layers.0.attention.probs", "layers.1", "output"]
    computed, layer = [], interventions._layer
    monkeypatch.setattr(interventions, "_layer", lambda *inside: computed.append(inside) or layer(*inside))
    swept = list(lab.sweep(tiny, rows, changes, keep=keep))
    # of three layers; the first change leaves layer 0, the second layer 1, the one of the output all of them
    assert len(computed) == 3 + 2 + 2 + 3 + 1 + 1 + 0 + 3
    for change, runs in zip(changes, swept, strict=True):
        for run, alone in zip(runs, lab.intervene(tiny, rows, change, keep=keep), strict=True):
            np.testing.assert_array_equal(run.logits, alone.logits)
            for name in keep:
                np.testing.assert_array_equal(run.kept[name], alone.kept[name])
            for name, x in vars(alone.trace).items():
                if isinstance(x, np.ndarray):
                    np.testing.assert_array_equal(getattr(run.trace, name), x, err_msg=name)


def test_several_rows_are_each_by_itself(tiny32):
    """Of different tokens, and as they go on."""
    rows, changes = [PROMPT, PROMPT[::-1]], {"layers.1.attention.probs": lambda p: p.at[:, 1].set(0)}
    for row, run in zip(rows, lab.intervene(tiny32, rows, changes, 3), strict=True):
        alone = lab.intervene(tiny32, row, changes, 3)
        assert run.tokens.tolist() == alone.tokens.tolist() and run.tokens[: len(row)].tolist() == row
        np.testing.assert_allclose(run.logits, alone.logits, atol=1e-5)
        assert len(run.trace) == len(row) + 2 and run.trace.tokens.tolist() == run.tokens[1:].tolist()
        np.testing.assert_allclose(run.trace.surprisal, alone.trace.surprisal, atol=1e-5)
        np.testing.assert_allclose(run.trace.attention_entropy, alone.trace.attention_entropy, atol=1e-5)
    alone = lab.intervene(tiny32, [[5]], {})[0]
    assert alone.trace is None and alone.logits.shape == (1, tiny32.config.vocab_size)
    longer = lab.intervene(tiny32, [5], {}, 2, trace=False)
    assert longer.trace is None and len(longer.tokens) == len(longer.logits) == 3


def test_a_sweep_checks_names_first(tiny32):
    seen = []
    with pytest.raises(ValueError, match="no tap 'layers.9.attention.wo'"):
        lab.sweep(tiny32, PROMPT, [{"layers.0": lambda x: seen.append(x) or x}, {"layers.9.attention.wo": abs}])
    assert not seen
