import math
import sys
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entropix_lab as lab
from entropix_lab.entropy import metrics as e
from entropix_lab.faithful import dirichlet, static
from entropix_lab.llama.model import transformer

pytestmark = pytest.mark.in_haste

LN2 = math.log(2)
LLAMA3_VOCABULARY = 128256


def float64_truth(logits):
    z = np.asarray(logits, np.float64)
    log_p = z - z.max(-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    p, log_p = np.exp(log_p), np.where(np.isneginf(log_p), 0, log_p)
    H = -(p * log_p).sum(-1)
    return H, (p * (log_p + H[..., None]) ** 2).sum(-1)


class TestLogits:
    @pytest.mark.parametrize("n", [2, 7, LLAMA3_VOCABULARY])
    def test_uniform(self, n):
        H, V = lab.entropy_varentropy(jnp.full(n, 3.7))
        assert abs(H - math.log(n)) < 2e-6 and V == 0

    def test_one_hot_and_impossible_tokens_are_exact(self):
        one_hot = jnp.full(LLAMA3_VOCABULARY, -jnp.inf).at[17].set(5.0)
        assert lab.entropy_varentropy(one_hot) == (0, 0)
        fork = one_hot.at[99].set(5.0)
        assert lab.entropy_varentropy(fork) == (jnp.float32(LN2), 0)
        assert lab.entropy_varentropy(jnp.array([200.0, 0.0, -200.0])) == (0, 0)

    def test_a_lopsided_choice_has_the_variance_of_two_surprises(self):
        p = np.array([0.9, 0.1])
        H, V = lab.entropy_varentropy(jnp.log(p))
        assert abs(H - (p * -np.log(p)).sum()) < 1e-6
        assert abs(V - 0.9 * 0.1 * math.log(9) ** 2) < 1e-6

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    def test_float32_whatever_comes(self, dtype):
        logits = jnp.asarray(np.random.default_rng(1).standard_normal((3, 50)), dtype)
        for got, want in zip(lab.entropy_varentropy(logits), float64_truth(logits.astype(jnp.float32)), strict=True):
            assert got.dtype == jnp.float32 and got.shape == (3,)
            np.testing.assert_allclose(got, want, rtol=1e-5)

    @pytest.mark.parametrize("scale", [0.1, 0.5, 1, 2, 4, 8, 16])
    def test_float64_agrees_at_llamas_vocabulary(self, scale):
        logits = np.random.default_rng(7).standard_normal((2, LLAMA3_VOCABULARY)).astype(np.float32) * scale
        for got, want in zip(jax.jit(lab.entropy_varentropy)(logits), float64_truth(logits), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)

    @given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.floats(-100, 100, width=32))
    @settings(deadline=None, max_examples=50)
    def test_bounds_and_shift(self, logits, shift):
        logits = np.array(logits, np.float32)
        H, V = lab.entropy_varentropy(logits)
        assert -1e-6 <= H <= math.log(len(logits)) + 1e-5 and V >= 0
        for got, want in zip((H, V), lab.entropy_varentropy(logits + np.float32(shift)), strict=True):
            np.testing.assert_allclose(got, want, atol=3e-4, rtol=3e-4)  # the shifted logits themselves are rounded

    def test_chosen(self):
        logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
        got = e.chosen_metrics(logits + 9, jnp.array([0, 2]))
        np.testing.assert_allclose(got["surprisal"], [LN2, 2 * LN2], rtol=1e-6)
        np.testing.assert_allclose(got["probability"], [0.5, 0.25], rtol=1e-6)
        np.testing.assert_allclose(got["top_probability"], [0.5, 0.5], rtol=1e-6)
        assert got["rank"].tolist() == [0, 2]

    def test_rank_zero_is_the_argmax(self):
        logits = jnp.asarray(np.random.default_rng(0).integers(0, 4, (200, 9)), jnp.float32)  # full of ties
        assert (e.chosen_metrics(logits, jnp.argmax(logits, -1))["rank"] == 0).all()
        ranks = jnp.stack([e.chosen_metrics(logits, jnp.full(200, t))["rank"] for t in range(9)], 1)
        assert (jnp.sort(ranks, 1) == jnp.arange(9)).all()


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent.parent / "golden" / "metrics.npz") as file:
        return {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in file.items()}


class TestGolden:
    """The original's own figures: equal where it is right; both numbers where it is not."""

    def test_entropy_and_varentropy(self, golden):
        H, V = lab.entropy_varentropy(golden["logits_f16"])
        np.testing.assert_allclose(H / LN2, golden["entropy_bits"], atol=5e-6)
        np.testing.assert_allclose(V / LN2**2, golden["varentropy_bits2"], atol=1e-5, rtol=1e-5)

    def test_at_llamas_vocabulary(self, golden):
        largest = []
        for i, (seed, scale) in enumerate(zip(golden["big_seed"], golden["big_scale"], strict=True)):
            logits = np.random.default_rng(seed).standard_normal(LLAMA3_VOCABULARY).astype(np.float32) * scale
            H, V = lab.entropy_varentropy(logits)
            np.testing.assert_allclose(H / LN2, golden["big_entropy_bits"][i], rtol=2e-6, atol=1e-6)
            np.testing.assert_allclose(V / LN2**2, golden["big_varentropy_bits2"][i], rtol=2e-5, atol=1e-6)
            # it kept the logits' dtype and summed in bfloat16; ours is that of the same logits
            narrow = logits.astype(jnp.bfloat16)
            ours = lab.entropy_varentropy(narrow)[0]
            np.testing.assert_allclose(ours, float64_truth(narrow)[0], atol=1e-5)
            theirs = static.measure(narrow[None, None], jnp.zeros((1, 1, 1, 4))).H.astype(jnp.float32)
            np.testing.assert_allclose(theirs, golden["big_entropy_bits_bf16"][i], rtol=2**-7)
            largest.append(abs(theirs - ours / LN2))
        assert max(largest) > 0.25

    def test_a_floor_without_renormalising_loses_mass(self, golden):
        """Later revisions set log p below -12 to -18.4: right for small vocabularies, wrong where the tail weighs."""
        H, V = lab.entropy_varentropy(golden["logits_f16"])
        smallest = np.asarray(jax.nn.log_softmax(golden["logits_f16"])).min(-1)
        above = smallest > -12
        assert above.sum() > 50
        np.testing.assert_allclose(H[above], golden["head_entropy_nats"][above], atol=5e-6)
        np.testing.assert_allclose(V[above], golden["head_varentropy_nats2"][above], atol=1e-5, rtol=1e-5)
        lost = []
        for i, (seed, scale) in enumerate(zip(golden["big_seed"], golden["big_scale"], strict=True)):
            logits = np.random.default_rng(seed).standard_normal(LLAMA3_VOCABULARY).astype(np.float32) * scale
            theirs = dirichlet.moments(dirichlet.normalise(jnp.asarray(logits)))[0]
            np.testing.assert_allclose(theirs, golden["big_head_entropy_nats"][i], rtol=5e-5)
            lost.append(lab.entropy_varentropy(logits)[0] - theirs)
        assert max(lost) > 2.5

    def test_attention_over_live_slots(self, golden):
        """Ours on the padded cache is the original's function on the live slots. The original's own took every slot
        for live, which ours does too where it is told so."""

        def measured(live):
            metrics = of_scores(golden["attn_scores_f16"], live)
            by_head = metrics["attention_entropy"][:, 0, 0] / LN2
            return {
                "attn_entropy": by_head.mean(-1),
                "attn_varentropy": by_head.var(-1),  # what the original calls so: over heads, of their entropies
                "agreement": 2 / live * metrics["head_disagreement"][:, 0, 0],
                "interaction_strength": metrics["score_magnitude"][:, 0, 0],
            }

        live = golden["attn_live"]
        ours, padded = measured(live), measured(np.full_like(live, 64))
        for name in ours:
            np.testing.assert_allclose(ours[name], golden[f"liveonly_{name}"], rtol=1e-4, atol=2e-6, err_msg=name)
            np.testing.assert_allclose(padded[name], golden[f"padded_{name}"], rtol=1e-4, atol=2e-6, err_msg=name)
            assert np.median(np.abs(padded[name] - ours[name])[live < 32]) > 0.02, name

    def test_attention_varentropy_is_that_of_the_probabilities(self, golden):
        full = golden["attn_live"] == 64
        assert full.sum() >= 2
        metrics = of_scores(golden["attn_scores_f16"][full], golden["attn_live"][full])
        for ours, name in (("entropy", "entropy_nats"), ("varentropy", "varentropy_nats2")):
            want = golden[f"attnstats_{name}"][full]
            defined = ~np.isnan(want)
            got = metrics[f"attention_{ours}"][:, 0, 0]
            np.testing.assert_allclose(got[defined], want[defined], rtol=2e-4, atol=2e-5)
        # dead slots and underflows: 0 * log 0 is NaN in the original's statistics, and finite here
        far = of_scores(np.array([[[[0.0, -200.0, 5.0, 1.0]]]]), [3])
        assert all(np.isfinite(x).all() for x in far.values())

    def test_rows_of_a_batch_are_not_averaged(self, golden):
        H, V = lab.entropy_varentropy(golden["batch_logits_f16"])
        assert H.shape == (2, 3)
        np.testing.assert_allclose(H.mean() / LN2, golden["batch_logits_entropy"], rtol=1e-6)
        np.testing.assert_allclose(V.mean() / LN2**2, golden["batch_logits_varentropy"], rtol=1e-5)


def of_scores(scores, live):
    """The metrics [C,T,L=1,N] of scores [C,N,T,S] of which live [C] slots are."""
    found, tap = e.collector()
    mask = np.arange(scores.shape[-1]) < np.reshape(live, (-1, 1, 1, 1))
    tap("layers.0.attention.scores", jnp.where(mask, scores, -jnp.inf)[:, :, None])
    return {name: np.asarray(x) for name, x in e.attention_metrics(found).items()}


class TestAttention:
    def test_by_hand(self):
        probs = np.array([[0.5, 0.5, 0, 0], [0.1, 0.3, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3, 0]])
        with np.errstate(divide="ignore"):
            scores = np.log(probs)[None, :, None]
        metrics = {name: x[0, 0, 0] for name, x in of_scores(scores, [4]).items()}
        heads = float64_truth(scores[0, :, 0])
        np.testing.assert_allclose(metrics["attention_entropy"], heads[0], atol=1e-6)
        np.testing.assert_allclose(metrics["attention_varentropy"], heads[1], atol=1e-6)
        np.testing.assert_allclose(metrics["attention_rest"], [0, math.log(3), LN2], atol=1e-6)
        np.testing.assert_allclose(metrics["attention_sink"], probs[:, 0], atol=1e-6)
        distances = np.abs(probs - probs.mean(0)).sum(-1) / 2
        np.testing.assert_allclose(metrics["head_disagreement"], distances.mean(), atol=1e-6)

    @pytest.mark.parametrize("sink", [-20.0, 0.0, 20.0, 60.0, 200.0])
    def test_without_the_sink_however_large_it_is(self, sink):
        scores = np.random.default_rng(0).standard_normal((1, 4, 1, 20)).astype(np.float32) * 3
        scores[..., 0] = sink
        want = float64_truth(scores[0, :, 0, 1:])[0] if sink < 87 else np.zeros(4)  # below exp(-87) there is nothing
        np.testing.assert_allclose(of_scores(scores, [20])["attention_rest"][0, 0, 0], want, atol=2e-5)

    def test_one_slot(self):
        metrics = of_scores(np.full((1, 2, 1, 6), 3.0), [1])
        zeros = ("attention_entropy", "attention_varentropy", "attention_rest", "head_disagreement")
        assert all((metrics[name] == 0).all() for name in zeros)
        assert metrics["attention_sink"].min() == 1 and metrics["score_magnitude"][0, 0, 0] == 3


def tokens_for(model, B, T, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T)).astype(np.int32)


def run(model, tokens, max_seq_len, noise=0.0):
    """The attention metrics of one pass; the cache starts with noise of that size in its slots."""
    cache = lab.KVCache.new(model.config, len(tokens), max_seq_len, model.dtype)
    cache = jax.tree.map(lambda x: x + noise * jax.random.normal(jax.random.key(0), x.shape, x.dtype), cache)
    return {name: np.asarray(x) for name, x in collect(model.weights, model.config, tokens, cache, None).items()}


@partial(jax.jit, static_argnames="config")
def collect(weights, config, tokens, cache, last):
    found, tap = e.collector(last)
    transformer(weights, config, tokens, 0, cache, tap)
    return e.attention_metrics(found)


class TestCollector:
    def test_neither_the_cache_nor_padding_nor_the_batch_moves_it(self, tiny32):
        tokens = tokens_for(tiny32, 3, 9)
        want = run(tiny32, tokens, 9)
        assert want["attention_entropy"].shape == (3, 9, 3, 4) and want["score_magnitude"].shape == (3, 9, 3)
        longer, noisy = run(tiny32, tokens, 64), run(tiny32, tokens, 64, noise=100.0)
        padded = run(tiny32, np.pad(tokens, ((0, 0), (0, 7))), 16)
        others = run(tiny32, np.concatenate([tokens[:1], tokens[1:] * 0]), 9)
        for name, x in want.items():
            for got in (longer[name], noisy[name], padded[name][:, :9]):
                np.testing.assert_allclose(got, x, atol=3e-6, err_msg=name)
            np.testing.assert_allclose(others[name][0], x[0], atol=3e-6)

    def test_it_is_what_the_taps_say(self, tiny32):
        tokens = tokens_for(tiny32, 1, 6)
        cache = lab.KVCache.new(tiny32.config, 1, 8)
        _, _, taps = lab.xfmr_with_taps(tiny32.weights, tiny32.config, tokens, 0, cache)
        got = run(tiny32, tokens, 8)
        for layer in range(3):
            H, V = float64_truth(taps[f"layers.{layer}.attention.scores"][0])  # [N,T]
            np.testing.assert_allclose(got["attention_entropy"][0, :, layer], H.T, atol=3e-6)
            np.testing.assert_allclose(got["attention_varentropy"][0, :, layer], V.T, atol=1e-5)
            sink = taps[f"layers.{layer}.attention.probs"][0, :, :, 0]
            np.testing.assert_allclose(got["attention_sink"][0, :, layer], sink.T, atol=1e-6)

    def test_the_last_position_alone(self, tiny32):
        tokens, last = tokens_for(tiny32, 2, 8), np.array([3, 7])
        cache = lab.KVCache.new(tiny32.config, 2, 8)
        want = run(tiny32, tokens, 8)
        for name, x in collect(tiny32.weights, tiny32.config, tokens, cache, last).items():
            np.testing.assert_allclose(x[:, 0], want[name][np.arange(2), last], atol=3e-6, err_msg=name)


def arrays_of(trace):
    return {name: x for name, x in vars(trace).items() if isinstance(x, np.ndarray)}


class TestTrace:
    def test_text_is_what_the_logits_say(self, tiny):
        tokens = tokens_for(tiny, 1, 21)
        trace = lab.trace_text(tiny, tokens, lens=True, attention=True)
        cache = lab.KVCache.new(tiny.config, 1, 21, tiny.dtype)
        logits, _, taps = lab.xfmr_with_taps(tiny.weights, tiny.config, tokens, 0, cache)
        logits = logits[0, :-1]
        tolerance = 1e-5 if tiny.dtype == "float32" else 0.05
        H, V = float64_truth(logits)
        np.testing.assert_allclose(trace.entropy, H, atol=tolerance)
        np.testing.assert_allclose(trace.varentropy, V, atol=tolerance)
        log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(20), tokens[0, 1:]]
        np.testing.assert_allclose(trace.surprisal, -log_p, atol=tolerance)
        np.testing.assert_allclose(trace.perplexity, np.exp(-log_p.mean()), rtol=tolerance)
        np.testing.assert_allclose(trace.lens_entropy[:, -1], trace.entropy, atol=tolerance)
        assert (trace.tokens == tokens[0, 1:]).all() and (trace.live == np.arange(1, 21)).all()
        if tiny.dtype == "float32":  # in bfloat16 two right programs order what is nearly equal otherwise
            self.lists_are_what_the_taps_say(trace, logits, taps)

    def lists_are_what_the_taps_say(self, trace, logits, taps):
        close = partial(np.testing.assert_allclose, atol=1e-5)
        p, by_rank = np.asarray(jax.nn.softmax(logits)), np.argsort(-logits, kind="stable")
        assert (trace.alternatives == by_rank[:, :10]).all() and trace.alternatives.shape == (20, 10)
        close(trace.alternative_probabilities, np.take_along_axis(p, by_rank[:, :10], -1))
        close(trace.lens_probabilities[:, -1], np.take_along_axis(p, by_rank[:, :5], -1))
        assert (trace.lens_tokens[:, -1] == by_rank[:, :5]).all() and (trace.lens_rank[:, -1] == trace.rank).all()
        assert trace.lens_tokens.shape == (20, 3, 5) and (trace.lens_rank[:, 0] != trace.rank).any()
        assert set(trace.words) == set(np.unique(trace.alternatives)) | set(np.unique(trace.lens_tokens))
        assert len(trace.prompt_pieces) == trace.live[0] == 1
        for layer in range(3):
            probs = np.moveaxis(np.asarray(taps[f"layers.{layer}.attention.probs"][0]), 0, 1)[:-1]  # [T,N,S]
            slots, weights = trace.attention_sources[:, layer], trace.attention_weights[:, layer]
            assert slots.shape == (20, 4, 8)
            close(weights, -np.sort(-probs, -1)[..., :8])
            close(np.take_along_axis(probs, slots, -1), weights)

    def test_pieces_change_nothing(self, tiny32, monkeypatch):
        tokens = tokens_for(tiny32, 1, 50)
        want = lab.trace_text(tiny32, tokens)
        monkeypatch.setattr("entropix_lab.llama.prefill.PIECE", 8)
        for name, x in arrays_of(lab.trace_text(tiny32, tokens)).items():
            np.testing.assert_allclose(x, getattr(want, name), atol=1e-5, err_msg=name)

    def test_a_generation_is_traced_as_its_text(self, tiny32):
        prompts = [[5, 17, 3], [9], [44, 1, 2, 3, 99, 100, 7, 8, 21, 30]]
        generations = lab.generate(tiny32, prompts, 40, trace=("lens", "attention"))
        untraced = lab.generate(tiny32, prompts, 40)
        for prompt, g, u in zip(prompts, generations, untraced, strict=True):
            assert (g.tokens == u.tokens).all() and u.trace is None
            again = lab.trace_text(tiny32, np.concatenate([g.prompt_tokens, g.tokens]), lens=True, attention=True)
            assert set(arrays_of(g.trace)) == set(arrays_of(again))
            for name, x in arrays_of(g.trace).items():
                want = getattr(again, name)[len(prompt) - 1 :]
                if name in (
                    "alternatives",
                    "lens_tokens",
                    "attention_sources",
                ):  # what is nearly equal may change places
                    assert (x == want).mean() > 0.99, name
                else:
                    np.testing.assert_allclose(x, want, atol=3e-5, err_msg=name)
            np.testing.assert_allclose(g.trace.surprisal, -g.logprobs, atol=1e-6)

    def test_few_programs(self, tiny32):
        from entropix_lab.entropy.trace import _trace_piece

        before = _trace_piece._cache_size()
        for T in (2, 9, 17, 18, 25, 33):
            lab.trace_text(tiny32, tokens_for(tiny32, 1, T))
        assert _trace_piece._cache_size() - before <= 2

    def test_saved_and_loaded(self, tiny32, tmp_path):
        trace = lab.trace_text(tiny32, tokens_for(tiny32, 1, 12), lens=True, attention=True)
        trace.info["branch"] = np.arange(11)
        again = lab.Trace.load(trace.save(tmp_path / "trace"))
        for name in ("pieces", "prompt", "prompt_pieces", "words"):
            assert getattr(again, name) == getattr(trace, name)
        assert all((getattr(again, name) == x).all() for name, x in arrays_of(trace).items())
        assert (again.info["branch"] == np.arange(11)).all()
        np.savez(tmp_path / "other.npz", x=1)
        with pytest.raises(ValueError, match="is not a trace"):
            lab.Trace.load(tmp_path / "other.npz")

    def test_loaded_by_the_name_it_was_saved_by(self, tiny32, tmp_path):
        trace = lab.trace_text(tiny32, [5, 17, 3])
        trace.save(tmp_path / "x")
        assert lab.Trace.load(tmp_path / "x").tokens.tolist() == [17, 3]

    def test_one_line(self, tiny32):
        trace = lab.trace_text(tiny32, [5, 17, 3])
        assert repr(trace).startswith("Trace(2 tokens, mean entropy ") and "3 layers, 4 heads" in repr(trace)
        assert repr(trace[:0]) == "Trace(0 tokens, 3 layers, 4 heads)"
        want = "Model(tiny, float32, 3 layers of dim 64, 4 heads on 2, vocabulary 128, no tokenizer)"
        assert repr(tiny32) == want

    def test_a_table(self, tiny32, monkeypatch):
        trace = lab.trace_text(tiny32, [5, 17, 3])
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="to_pandas needs pandas: pip install pandas"):
            trace.to_pandas()
        monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))  # it is not installed here
        table = trace.to_pandas()
        assert table["piece"] == trace.pieces and {np.shape(column) for column in table.values()} == {(2,)}

    def test_a_part(self, tiny32):
        trace = lab.trace_text(tiny32, tokens_for(tiny32, 1, 12))
        part = trace[4:]
        assert len(part) == 7 and part.prompt == trace.prompt + "".join(trace.pieces[:4])
        assert (part.attention_sink == trace.attention_sink[4:]).all() and part.live[0] == 5

    def test_relative_attention_entropy(self, tiny32):
        trace = lab.trace_text(tiny32, tokens_for(tiny32, 1, 40))
        relative = trace.relative_attention_entropy
        assert np.isnan(relative[0]).all() and relative[1:].min() >= 0 and relative[1:].max() <= 1 + 1e-5
        rest = trace.relative_attention_rest
        assert np.isnan(rest[:2]).all() and rest[2:].min() >= 0 and rest[2:].max() <= 1 + 1e-5

    @pytest.mark.parametrize("tokens", [[5], [[1, 2], [3, 4]]])
    def test_what_cannot_be_traced(self, tiny32, tokens):
        with pytest.raises(ValueError, match="one text of at least two tokens"):
            lab.trace_text(tiny32, tokens)


def test_sampler_gets_what_it_needs(tiny32):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Reads:
        needs = ("attention_entropy",)

        def init(self, batch):
            return ()

        def __call__(self, logits, metrics, state, keys):
            assert set(metrics) == {"entropy", "varentropy", *self.needs}
            assert metrics["attention_entropy"].shape == (1, 3, 4)
            return jnp.argmax(logits, -1).astype(jnp.int32), state, {}

    assert len(lab.generate(tiny32, [1, 2], 3, Reads())[0].tokens) == 3


class TestPlots:
    @pytest.fixture(scope="class")
    def trace(self, tiny32):
        trace = lab.trace_text(tiny32, tokens_for(tiny32, 1, 30), lens=True)
        trace.info["branch"] = np.arange(29) % 5
        return trace

    def test_they_draw_what_is_there(self, trace):
        ax = lab.plots.entropy_trace(trace)[0]
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), trace.entropy)
        np.testing.assert_array_equal(ax.lines[1].get_ydata(), trace.surprisal)
        points = np.concatenate([c.get_offsets() for c in lab.plots.quadrants([trace, trace]).collections])
        assert len(points) == 58 and sorted(points[:, 0]) == sorted(np.tile(trace.entropy, 2).astype(float))
        panels = lab.plots.attention_entropy(trace)
        np.testing.assert_allclose(panels[2].images[0].get_array(), trace.attention_sink.mean(0))
        assert "".join(t.get_text() for t in lab.plots.token_heat(trace).texts) == "".join(trace.pieces)

    def test_how_each_token_was_chosen_is_named(self, tiny32):
        for kind, names in lab.samplers.NAMES.items():
            trace = lab.trace_text(tiny32, tokens_for(tiny32, 1, 30))
            trace.info[kind] = np.arange(29) % len(names)
            assert trace.taken[0] == kind and all(f">{name}</span>" in trace._repr_html_() for name in names)
            legends = (lab.plots.entropy_trace(trace)[1].get_legend(), lab.plots.quadrants(trace).get_legend())
            for legend in legends:
                assert [t.get_text().rsplit(" (", 1)[0] for t in legend.get_texts()] == list(names)
        assert lab.trace_text(tiny32, tokens_for(tiny32, 1, 9)).taken == (None, None)

    def test_they_say_what_is_missing(self, tiny32):
        with pytest.raises(ValueError, match="trace=True"):
            lab.plots.entropy_trace(lab.generate(tiny32, [1], 2)[0])
