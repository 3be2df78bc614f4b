import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import entropix_lab as lab
from entropix_lab import cpu_weights
from entropix_lab.evaluation import Panel
from entropix_lab.generation.step import steps
from entropix_lab.llama import prefill
from entropix_lab.sampling import Greedy

pytestmark = pytest.mark.in_haste

PROMPTS = [[5, 17, 3], [9], [44, 1, 2, 3, 99, 100, 7, 8, 21, 30, 31, 32, 33, 34, 35, 36, 37, 2], [9, 9]]


@dataclasses.dataclass(frozen=True)
class Draw:
    """A sampler that draws from the distribution, and counts its steps in its state."""

    def init(self, batch):
        return jnp.zeros(batch, jnp.int32)

    def __call__(self, logits, metrics, state, keys):
        token = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        return token, state + 1, {"step": state, "entropy": metrics["entropy"]}


def same(a, b):
    """Equal tokens, or a first difference where the two best were tied."""
    differ = np.flatnonzero(a.tokens != b.tokens)
    return differ.size == 0 or differ[0] in a.ties or differ[0] in b.ties


def test_greedy_is_metas(tiny):
    reference = lab.load_reference(tiny.path, tiny.dtype)
    for prompt in PROMPTS:
        ours = lab.generate(tiny, prompt, 40)[0]
        metas = reference.greedy(prompt, 40)
        differ = np.flatnonzero(ours.tokens != metas)
        assert differ.size == 0 or differ[0] in ours.ties
        assert tiny.dtype == "bfloat16" or differ.size == 0


def test_prompts_read_by_pieces_give_metas_tokens(tiny, monkeypatch):
    """Several pieces, of rows of several lengths, some of which share a prompt."""
    reference = lab.load_reference(tiny.path, tiny.dtype)
    monkeypatch.setattr(prefill, "PIECE", 4)
    monkeypatch.setattr(prefill, "SMALLEST_CACHE", 4)
    for ours in lab.generate(tiny, [*PROMPTS, *PROMPTS], 12):
        differ = np.flatnonzero(ours.tokens != reference.greedy(ours.prompt_tokens, 12))
        assert differ.size == 0 or tiny.dtype == "bfloat16" and differ[0] in ours.ties


def test_a_prompt_is_read_once_and_by_pieces(tiny32, monkeypatch):
    """Each piece over a cache for what was read so far; the last one of every row ends with the row."""
    monkeypatch.setattr(prefill, "SMALLEST_CACHE", 8)
    rows, read, pieces = [np.arange(600) % 128, np.arange(300) % 128, np.arange(5)], [{}, {}, {}], []

    def run(tokens, start_pos, last, cache):
        pieces.append((tokens.shape[1], cache.max_seq_len))
        for i in range(len(rows)):
            assert start_pos[i] <= len(read[i])  # nothing is left out
            read[i] |= {int(start_pos[i]) + t: int(tokens[i, t]) for t in range(last[i] + 1)}
        return start_pos + last, cache

    outs, _ = prefill.prefill(run, tiny32.weights, tiny32.config, rows)
    assert pieces == [(256, 256), (256, 512), (256, 1024)] and outs[-1].tolist() == [599, 299, 4]
    assert read == [dict(enumerate(row.tolist())) for row in rows]


def test_weights_for_generation_alone(tiny):
    """The same tokens, and under Meta's names the same arrays, from one copy of the matrices."""
    alone = lab.load_model(tiny.path, tiny.dtype, for_generation=True)
    assert alone.decode_weights is alone.weights and alone.dtype == tiny.dtype
    assert (lab.generate(alone, PROMPTS[0], 8)[0].tokens == lab.generate(tiny, PROMPTS[0], 8)[0].tokens).all()
    named = lab.weights.by_name(alone.weights)
    assert all((named[name] == x).all() for name, x in lab.weights.by_name(tiny.weights).items())


def test_no_matrix_is_turned_outside_of_the_programs(tiny, monkeypatch):
    """Under Meta's names generation's matrices are transposed: within a program that is free, outside of it a copy."""
    views = [(cpu_weights.DecodeWeights, "output")]
    views += [(cpu_weights.FusedLayerWeights, name) for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")]
    assert tiny.decode_weights is not tiny.weights  # made here, by its own views, before they are watched

    def within(view):
        def seen(weights):
            assert isinstance(jax.tree.leaves(weights)[0], jax.core.Tracer)
            return view(weights)

        return property(seen)

    for kind, name in views:
        monkeypatch.setattr(kind, name, within(getattr(kind, name).fget))
    lab.generate(tiny, PROMPTS, 3, trace=True)
    lab.timing.work(tiny, 3)
    lab.timing.bytes_per_token(tiny, 3)


def test_a_trace_changes_no_token(tiny32):
    plain, traced = (lab.generate(tiny32, PROMPTS, 20, trace=trace) for trace in (False, ("lens", "attention")))
    assert all(same(a, b) for a, b in zip(plain, traced, strict=True))


def test_a_row_of_a_batch_is_the_row_alone(tiny):
    batch = lab.generate(tiny, PROMPTS, 40)
    alone = [lab.generate(tiny, p, 40)[0] for p in PROMPTS]
    assert all(same(a, b) for a, b in zip(batch, alone, strict=True))
    assert tiny.dtype == "bfloat16" or all((a.tokens == b.tokens).all() for a, b in zip(batch, alone, strict=True))


def test_a_rows_randomness_is_its_own(tiny32):
    draw = lambda prompts, seed: [g.tokens.tolist() for g in lab.generate(tiny32, prompts, 20, Draw(), seed)]
    a, b = draw(PROMPTS[:2], [7, 8])
    assert draw(PROMPTS[1::-1], [8, 7]) == [b, a]
    assert draw(PROMPTS[0], 7) == [a] and draw(PROMPTS[0], 7) == [a]
    assert draw(PROMPTS[0], 9) != [a]
    four = draw([PROMPTS[0]] * 4, range(4))
    assert len({tuple(t) for t in four}) == 4
    assert draw([PROMPTS[0]] * 2, 3)[0] == draw([PROMPTS[0]] * 2, 3)[1]


def test_a_seed_gives_the_same_in_any_place_of_its_batch(tiny):
    """In either dtype: what bfloat16 cannot promise is the same row in a batch of another size."""
    prompts, seeds = [PROMPTS[0], PROMPTS[3], PROMPTS[0], PROMPTS[1]], [7, 8, 7, 9]
    draw = lambda *order: lab.generate(tiny, [prompts[i] for i in order], 20, Draw(), [seeds[i] for i in order])
    forth, back = draw(0, 1, 2, 3), draw(3, 2, 1, 0)
    assert all((a.tokens == b.tokens).all() for a, b in zip(forth, back[::-1], strict=True))
    assert (forth[0].tokens == forth[2].tokens).all()


def test_in_float64(tiny32):
    with jax.enable_x64(True):
        truth = lab.generate(lab.load_model(tiny32.path, "float64"), PROMPTS[0], 8)[0]
    assert truth.tokens.tolist() == lab.generate(tiny32, PROMPTS[0], 8)[0].tokens.tolist()


def test_rows_that_share_a_prompt_are_those_that_do_not(tiny32):
    """Read once or read by each row: the same tokens, and the same attention to them."""
    prompts, seeds = [PROMPTS[i] for i in (2, 0, 2, 2, 0, 1, 2)], [3, 1, 4, 1, 5, 9, 2]
    together = lab.generate(tiny32, prompts, 12, Draw(), seeds, trace=True)
    for prompt, seed, shared in zip(prompts, seeds, together, strict=True):
        alone = lab.generate(tiny32, prompt, 12, Draw(), seed, trace=True)[0]
        assert (shared.tokens == alone.tokens).all()
        for name in ("entropy", "attention_entropy"):
            np.testing.assert_allclose(getattr(shared.trace, name), getattr(alone.trace, name), atol=1e-4)


def test_what_the_sampler_reports_is_kept(tiny32):
    with_trace, without = (lab.generate(tiny32, PROMPTS[0], 5, Draw(), trace=t)[0] for t in (True, False))
    for g in (with_trace, without):
        assert g.info["step"].tolist() == [0, 1, 2, 3, 4] and g.info["entropy"].shape == (5,)
    assert with_trace.trace.info is with_trace.info and without.trace is None


def test_draws_have_the_models_probabilities(tiny32):
    firsts = [g.tokens[0] for g in lab.generate(tiny32, [PROMPTS[0]] * 256, 1, Draw(), range(256))]
    cache = lab.KVCache.new(tiny32.config, 1, 3)
    p = jax.nn.softmax(lab.xfmr(tiny32.weights, tiny32.config, jnp.array([PROMPTS[0]]), 0, cache)[0][0, -1])
    top = np.argsort(-np.asarray(p))[:5]
    expected, found = float(p[top].sum()), np.isin(firsts, top).mean()
    assert abs(found - expected) < 4 * (expected * (1 - expected) / 256) ** 0.5


def test_the_cache_grows_and_nothing_changes(tiny32, monkeypatch):
    want = lab.generate(tiny32, PROMPTS, 150)
    monkeypatch.setattr(prefill, "SMALLEST_CACHE", 1024)
    assert all((a.tokens == b.tokens).all() for a, b in zip(want, lab.generate(tiny32, PROMPTS, 150), strict=True))


def test_what_a_row_reports(tiny32):
    g = lab.generate(tiny32, PROMPTS[0], 12)[0]
    cache = lab.KVCache.new(tiny32.config, 1, 15)
    whole = jnp.array([[*PROMPTS[0], *g.tokens]])
    logits = lab.xfmr(tiny32.weights, tiny32.config, whole, 0, cache)[0][0, 2:-1]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(g.logprobs, log_p[np.arange(12), g.tokens], atol=1e-5)
    best = np.sort(np.asarray(logits))
    np.testing.assert_allclose(g.margins, best[:, -1] - best[:, -2], atol=1e-5)
    assert g.finish_reason == "length" and g.timing["first_token_s"] > 0 and "tokens" in g._repr_html_()


def test_max_seq_len_is_a_clean_stop(tiny32):
    long, short = lab.generate(tiny32, [PROMPTS[2], PROMPTS[0]], 30, max_seq_len=24)
    assert (long.finish_reason, len(long.tokens)) == ("max_seq_len", 24 - 18)
    assert (short.finish_reason, len(short.tokens)) == ("max_seq_len", 24 - 3)
    alone = lab.generate(tiny32, PROMPTS[0], 30)[0]
    assert (short.tokens == alone.tokens[:21]).all()


def test_no_compilation_in_steady_state(tiny32):
    count = lab.timing.programs
    for length in (3, 17, 30, 60):
        lab.generate(tiny32, list(range(length)), 80)
    before = count()
    for length in (1, 5, 16, 18, 25, 32, 33, 47, 64):
        lab.generate(tiny32, list(range(length)), 90)
    assert count() == before
    lab.generate(tiny32, list(range(65)), 2)  # the next bucket is a new program: the count can see one
    assert count() > before


def test_a_step_asks_nothing_of_the_host(tiny32):
    found = steps(tiny32, [[1, 2, 3], [4]], np.array([3, 1], np.int32), 4, lab.samplers.top_p(0.9), [0, 1], 8192)
    next(found), next(found)
    with jax.transfer_guard("disallow"):
        assert next(found)["token"].shape == (2,)


def test_a_new_number_needs_no_new_program(tiny32):
    """A new temperature or top_p is an argument of the compiled step; another top_k or another kind is a program."""
    s, count = lab.samplers, lab.timing.programs
    pairs = [
        (s.temperature(0.7), s.temperature(0.8)),
        (s.temperature(1.5), s.temperature(2)),
        (s.top_p(0.9), s.top_p(0.95, temperature=0.6)),
        (s.adaptive(clarifying_id=7), s.adaptive(clarifying_id=7, low_entropy=0.3, temperature=0.9)),
        (s.dirichlet(128), s.dirichlet(128, prior=0.2, ent_rates=(0.5, 0.5, 0.5, 0.5))),
        (Panel((s.min_p(0.1), Draw())), Panel((s.min_p(0.2), Draw()))),
    ]
    drawn = lambda sampler: [g.tokens.tolist() for g in lab.generate(tiny32, [PROMPTS[0]] * 2, 12, sampler)]
    for one, other in pairs:
        drawn(one)
        before = count()
        drawn(other)
        assert count() == before, other
    drawn(s.top_k(5))
    assert count() > before  # the count can see one


def test_a_number_is_used(tiny32):
    """One program, and each number has its effect: almost cold it is greedy, hot it is not."""
    drawn = lambda t: lab.generate(tiny32, PROMPTS[0], 12, lab.samplers.temperature(t))[0].tokens.tolist()
    assert drawn(1e-6) == lab.generate(tiny32, PROMPTS[0], 12)[0].tokens.tolist() != drawn(100.0)


def test_a_sampler_that_is_no_pytree(tiny32):
    """It works alone and in a panel; its equal is the same program."""
    draw = lambda sampler: [g.tokens.tolist() for g in lab.generate(tiny32, [PROMPTS[0]] * 2, 8, sampler, seed=3)]
    alone, before = draw(Draw()), lab.timing.programs()
    assert draw(Draw()) == alone and lab.timing.programs() == before
    assert draw(Panel((Draw(), Draw()))) == alone


def test_stop(tiny32, demo):
    g = lab.generate(tiny32, PROMPTS[0], 12)[0]
    stopped = lab.generate(tiny32, PROMPTS[0], 12, stop=[int(g.tokens[4])])[0]
    first = g.tokens.tolist().index(g.tokens[4])
    assert stopped.finish_reason == "stop" and stopped.tokens.tolist() == g.tokens[: first + 1].tolist()
    text = lab.generate(demo, "Monday, Tuesday, Wednesday,", 12, stop=())[0].text
    word = text.split()[3]
    cut = lab.generate(demo, "Monday, Tuesday, Wednesday,", 12, stop=word)[0]
    assert cut.text == text[: text.index(word)] and cut.finish_reason == "stop" and len(cut.tokens) < 12


def test_model_stop_tokens_and_chat(demo):
    answer = lab.chat(demo, "What is the capital of France?", max_new_tokens=40)
    assert answer.finish_reason == "stop" and answer.tokens[-1] == 2 and "Paris" in answer.text
    assert "<|im_end|>" not in answer.text and answer.prompt.endswith("<|im_start|>assistant\n")


class Script:
    """A sampler that says given tokens, to see what the writer does with them."""

    def __init__(self, tokens):
        self.tokens = tuple(tokens)

    def init(self, batch):
        return jnp.zeros(batch, jnp.int32)

    def __call__(self, logits, metrics, state, keys):
        return jnp.array(self.tokens, jnp.int32)[state], state + 1, {}


def test_streams_whole_characters(few_layers, capsys):
    text = "naïve 北京 🙂 end"
    tokens, pieces = few_layers.tokenizer.encode(text), []
    g = lab.generate(
        few_layers, "x", len(tokens), Script(tokens), stream=lambda row, piece: pieces.append((row, piece))
    )[0]
    assert "".join(p for _, p in pieces) == text == g.text and {row for row, _ in pieces} == {0}
    assert not any("\ufffd" in p for _, p in pieces) and len(pieces) < len(tokens)
    lab.generate(few_layers, "x", len(tokens), Script(tokens), stream=True)
    assert capsys.readouterr().out == text + "\n"
    half = tokens[: tokens.index(few_layers.tokenizer.encode(" 北")[0]) + 1]
    assert lab.generate(few_layers, "x", len(half), Script(half))[0].text == "naïve \ufffd"


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one prompt"),
        ([[1], []], {}, "the prompt is empty"),
        ([1, 2], dict(max_new_tokens=0), "max_new_tokens must be at least 1, found 0"),
        ([list(range(20))], dict(max_seq_len=20), "prompt 0 has 20 tokens.*max_seq_len=20"),
        ([[1], [2]], dict(seed=[1, 2, 3]), "one to each of the 2 prompts, found 3"),
        ("text", {}, "no tokenizer.model"),
        (5, {}, "expected text, or token ids .*, found 5$"),
        (None, {}, "expected text, or token ids .*, found None"),
        ({"text": "a"}, {}, "expected text, or token ids .*, found {'text': 'a'}"),
        ([None], {}, "expected text, or token ids .*, found None"),
        ([[1, [2]]], {}, "expected text, or token ids .*, found list"),
        ([1.0, 2.0], {}, "expected text, or token ids .*, found 1.0"),
        ([1, 2**32 + 3], {}, "token 4294967299 is outside the vocabulary of 128"),
        ([1, -1], {}, "token -1 is outside the vocabulary of 128"),
        ([1], dict(sampler="top_p"), "expected a sampler, .*, found 'top_p'"),
        ([1], dict(sampler=lab.samplers.greedy), r"expected a sampler, .*: write greedy\(...\)"),
        ([1], dict(sampler=Greedy), r"expected a sampler, .*: write Greedy\(...\)"),
        ([1], dict(seed=-1), r"expected a seed from 0 to 2\*\*32 - 1, .*, found -1"),
        ([1], dict(seed=None), "expected a seed .*, found None"),
        ([1], dict(seed=2**40), "expected a seed .*, found 1099511627776"),
        ([1], dict(trace="foo"), "trace must be True, False, .*, found 'foo'"),
        ([1], dict(stop="."), "stop strings need a tokenizer"),
        ([1], dict(sampler=lab.samplers.adaptive()), "without a tokenizer .*clarifying=None"),
        ([1], dict(sampler=lab.samplers.dirichlet()), "vocab_size is not set"),
        ([1], dict(sampler=lab.samplers.dirichlet(vocab_size=9)), r"expected logits of \(1, 9\)"),
    ],
)
def test_errors(tiny32, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        lab.generate(tiny32, prompts, **options)


def test_prompts_of_every_kind(few_layers):
    ids = few_layers.tokenizer.encode("One two")
    results = [
        lab.generate(few_layers, p, 2)[0] for p in ("One two", ["One two"], ids, [ids], np.array(ids), np.array([ids]))
    ]
    assert all((r.tokens == results[0].tokens).all() for r in results)


def test_an_array_is_one_prompt_and_its_rows_are_several(tiny32):
    ids, wide = [5, 17, 3], [[5, 17, 3], [9, 9, 2]]
    grad = torch.tensor([float(i) for i in ids], requires_grad=True).to(torch.int32)
    ones = [np.array(ids), jnp.array(ids), torch.tensor(ids), grad, tuple(ids), [jnp.int32(i) for i in ids]]
    mixed = [torch.tensor(ids), jnp.array([[9, 9, 2]])]
    for given, rows in [*((one, [ids]) for one in ones), (jnp.array(wide), wide), (torch.tensor(wide), wide)]:
        assert [r.tolist() for r in tiny32.prompt_rows(given)] == rows
    assert [r.tolist() for r in tiny32.prompt_rows(mixed)] == wide
    assert len(lab.generate(tiny32, jnp.array(ids), 2)) == 1
    assert len(lab.trace_text(tiny32, torch.tensor(ids))) == 2


def test_without_a_tokenizer(tiny32):
    for sampler in (lab.samplers.dirichlet(vocab_size=128), lab.samplers.adaptive(clarifying_id=7)):
        # the shape of test_a_new_number_needs_no_new_program: a Dirichlet sampler takes seconds to compile
        assert [len(g.tokens) for g in lab.generate(tiny32, [PROMPTS[0]] * 2, 12, sampler)] == [12, 12]
    for call in (lambda: lab.chat(tiny32, "Hi"), lambda: lab.branch(tiny32, [1, 2])):
        with pytest.raises(ValueError, match="no tokenizer.model"):
            call()


def test_a_stop_string_is_never_streamed_in_part(few_layers, capsys):
    """Over several tokens, at the very end, and where it only seemed to begin."""
    tokens = few_layers.tokenizer.encode("one END two ENDING three EN")
    for stop, text in [("ENDING", "one END two "), ("three END", "one END two ENDING three EN"), (".", None)]:
        pieces = []
        stream = lambda row, piece, pieces=pieces: pieces.append(piece)
        g = lab.generate(few_layers, "x", len(tokens), Script(tokens), stop=[stop, "***"], stream=stream)[0]
        assert "".join(pieces) == g.text == (text or few_layers.tokenizer.decode(tokens)) and len(pieces) > 3
    lab.generate(few_layers, "x", len(tokens), Script(tokens), stop=["ENDING"], stream=True)
    assert capsys.readouterr().out == "one END two \n"


def test_rows_are_streamed_apart(few_layers, capsys):
    gens = lab.generate(few_layers, ["One, two,", "Monday,"], 5, stream=True)
    assert capsys.readouterr().out == "".join(f"[{i}] {g.text}\n" for i, g in enumerate(gens))


def test_chat_with_llama_3s_tokenizer(tiny_checkpoint):
    """A random model of Llama 3's vocabulary is asked in Llama 3's format, and stops at Llama 3's tokens."""
    meta = Path(__import__("llama_models.llama3").llama3.__file__).parent / "tokenizer.model"
    folder = tiny_checkpoint(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=128256)
    (folder / "checklist.chk").unlink()
    shutil.copy(meta, folder)
    model = lab.load_model(folder)
    answer = lab.chat(model, "Hi", max_new_tokens=3)
    special = model.tokenizer.special_tokens
    start, end, eot = (special[f"<|{name}|>"] for name in ("start_header_id", "end_header_id", "eot_id"))
    asked = answer.prompt_tokens.tolist()
    assert asked[0] == special["<|begin_of_text|>"]
    assert (asked.count(start), asked.count(end), asked.count(eot)) == (2, 2, 1)
    stopped = lab.chat(model, "Hi", max_new_tokens=3, sampler=Script([300, eot]))
    assert stopped.finish_reason == "stop" and stopped.text == model.tokenizer.decode([300])
