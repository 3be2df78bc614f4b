"""Samplers draw from the distributions that define them, decide each row alone, and branch as published."""

import functools
import math
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import entropix_lab as lab
from entropix_lab import sampling as samplers
from entropix_lab.sampling.draw import draw, likeliest, nucleus_floor

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "samplers.npz")
BITS = math.log(2)


def metrics(logits):
    log_p = jax.nn.log_softmax(logits, -1)
    p = jnp.exp(log_p)
    surprisal = jnp.where(p > 0, -log_p, 0)
    entropy = jnp.sum(p * surprisal, -1)
    return {"entropy": entropy, "varentropy": jnp.sum(p * (surprisal - entropy[:, None]) ** 2, -1)}


@functools.cache
def compiled(sampler):
    return jax.jit(lambda logits, state, keys: sampler(logits, metrics(logits), state, keys))


def run(sampler, logits, state=None, seed=0):
    """One step on logits [B,V], row i with its own key."""
    logits = jnp.asarray(logits, jnp.float32)
    keys = jax.random.split(jax.random.key(seed), len(logits))
    state = sampler.init(len(logits)) if state is None else state
    return compiled(sampler)(logits, state, keys)


def counts(sampler, logits, n=200_000, rows=20_000):
    """How often each token of one distribution [V] is drawn in n draws, each with a key of its own."""
    logits = jnp.asarray(logits, jnp.float32)[None]

    @jax.jit
    def some(key):
        one = lambda key: sampler(logits, metrics(logits), sampler.init(1), key[None])[0][0]
        token = jax.vmap(one)(jax.random.split(key, rows))
        return jnp.bincount(token, length=logits.shape[-1])

    return sum(np.asarray(some(key), np.int64) for key in jax.random.split(jax.random.key(1), n // rows))


def by_definition(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, top_n_sigma=None):
    """The probabilities in float64, by sorting."""
    logits = np.asarray(logits, np.float64)
    p = softmax64(logits / temperature)
    if top_n_sigma is not None:
        p[logits.max() - logits > top_n_sigma * logits.std()] = 0
        p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if top_k is not None:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p is not None:
        reached = np.searchsorted(np.cumsum(p[order]), top_p)
        p[p < p[order[min(reached, len(p) - 1)]]] = 0
        p /= p.sum()
    if min_p is not None:
        p[p < min_p * p.max()] = 0
        p /= p.sum()
    return p


def softmax64(z):
    e = np.exp(z - z.max())
    return e / e.sum()


RNG = np.random.default_rng(5)
LOGITS = RNG.standard_normal(40) * 1.5
SETTINGS = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=1.6),
    dict(top_k=5),
    dict(top_p=0.8),
    dict(min_p=0.1),
    dict(top_n_sigma=1.5),
    dict(temperature=2.0, top_n_sigma=2.0, top_p=0.9),
    dict(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05),
    dict(top_k=7, top_p=0.55),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_follow_the_definition(setting):
    found = counts(lab.samplers.sample(**setting), LOGITS)
    expected = by_definition(LOGITS, **setting)
    assert (found[expected == 0] == 0).all() and found.sum() == 200_000
    assert stats.chisquare(found[expected > 0], 2e5 * expected[expected > 0]).pvalue > 1e-4


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.4])
def test_a_slope_heats_or_cools_where_the_entropy_is_high(slope):
    sampler = lab.samplers.sloped(0.7, slope, mean_entropy=2.0)
    for logits in (LOGITS, LOGITS * 3):  # 2.9 and 1.1 nats
        p = softmax64(logits)
        expected = by_definition(logits, 0.7 * np.exp(slope * (-np.sum(p * np.log(p)) - 2.0)))
        found, often = counts(sampler, logits), expected * 2e5 > 10
        observed, wanted = (np.append(x[often], x[~often].sum()) for x in (found, expected * 2e5))
        assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-4
    with pytest.raises(ValueError, match="above 0, found 0"):
        lab.samplers.sloped(0, 0.5)


def test_a_draw_over_many_blocks():
    """Blocks of the vocabulary, its last one partly padding, and tokens of probability 0 in between."""
    weights = RNG.random(700) ** 8 * (RNG.random(700) < 0.7)
    weights[256:512] = 0
    found = counts(lab.samplers.sample(), np.log(np.maximum(weights, 1e-30)), rows=10_000)
    expected = weights / weights.sum()
    rare = expected * 2e5 < 10
    observed = np.append(found[~rare], found[rare].sum())
    assert found[256:512].sum() == 0
    assert stats.chisquare(observed, 2e5 * np.append(expected[~rare], expected[rare].sum())).pvalue > 1e-4


def test_short_spellings():
    s = lab.samplers
    assert s.temperature(0.5) == s.sample(0.5) and s.top_k(3) == s.sample(top_k=3)
    assert s.top_p(0.9, temperature=0.5) == s.sample(0.5, top_p=0.9) and s.min_p(0.1) == s.sample(min_p=0.1)
    assert s.sample(temperature=0) == s.greedy()


BAD = [dict(temperature=-1), dict(top_k=0), dict(top_p=0), dict(top_p=1.1), dict(min_p=-0.1), dict(top_n_sigma=-1)]


@pytest.mark.parametrize("bad", BAD)
def test_a_number_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        lab.samplers.sample(**bad)


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_nucleus_is_that_of_a_sort(top_p):
    p = np.asarray(jax.nn.softmax(jnp.asarray(RNG.standard_normal((50, 1000)) * 3, jnp.float32)))
    kept = p >= np.asarray(nucleus_floor(jnp.asarray(p), top_p))
    for row, keep in zip(p.astype(np.float64), kept, strict=True):
        smallest = np.sort(row[keep])[0]
        assert row[keep].sum() >= top_p - 1e-6  # enough mass,
        assert row[row > smallest].sum() < top_p + 1e-6  # and no more tokens than that takes
        assert not (row[~keep] >= smallest).any()


def test_nucleus_keeps_equal_tokens_together_and_everything_at_1():
    p = jnp.array([[0.4, 0.2, 0.2, 0.2, 0.0]])
    assert (p >= nucleus_floor(p, 0.5)).tolist() == [[True, True, True, True, False]]
    assert (p >= nucleus_floor(p, 0.4)).tolist() == [[True, False, False, False, False]]
    flat = jax.nn.softmax(jnp.asarray(RNG.standard_normal((4, 5000)), jnp.float32))
    assert (flat >= nucleus_floor(flat, 1.0)).all()


def test_impossible_tokens_and_one_hot_rows():
    logits = np.full((3, 300), -np.inf)
    logits[0, 7] = 3
    logits[1, [250, 260]] = 1
    logits[2] = np.arange(300) == 299
    logits[2] *= 200
    for sampler in (lab.samplers.sample(), lab.samplers.top_p(0.9), lab.samplers.sample(0.5, 5, 0.9, 0.1)):
        for seed in range(5):
            token, _, _ = run(sampler, logits, seed=seed)
            assert token[0] == 7 and token[1] in (250, 260) and token[2] == 299


def test_likeliest_is_top_k():
    x = jnp.asarray(RNG.standard_normal((3, 900)), jnp.float32)
    for ours, theirs in zip(likeliest(x, 9), jax.lax.top_k(x, 9), strict=True):
        assert (ours == theirs).all()


# every sampler


ALL = [
    lab.samplers.greedy(),
    lab.samplers.sample(0.8, top_p=0.9),
    lab.samplers.sample(1.2, top_k=40, min_p=0.02),
    lab.samplers.adaptive(clarifying_id=3),
    lab.samplers.adaptive("9d41be6", clarifying_id=3),
    lab.samplers.dirichlet(vocab_size=512),
]
ids = lambda s: type(s).__name__


@pytest.mark.parametrize("sampler", ALL, ids=ids)
def test_rows_are_independent_and_seeds_repeat(sampler):
    """Three steps of eight very different rows: together, alone, and in another order."""
    scale = np.array([0.1, 0.5, 1, 2, 3, 5, 8, 20])[:, None]
    steps = RNG.standard_normal((3, 8, 512)) * scale
    keys = jax.random.split(jax.random.key(9), 8)

    def walk(rows):
        state, tokens, infos = sampler.init(len(rows)), [], []
        for z in steps:
            token, state, info = compiled(sampler)(jnp.asarray(z[rows], jnp.float32), state, keys[np.array(rows)])
            assert token.shape == (len(rows),) and token.dtype == jnp.int32
            assert all(x.shape == (len(rows),) for x in info.values())
            tokens.append(np.asarray(token))
            infos.append({k: np.asarray(v) for k, v in info.items()})
        return np.stack(tokens), infos

    together, infos = walk(list(range(8)))
    again, _ = walk(list(range(8)))
    assert (together == again).all()
    turned, _ = walk([7, 6, 5, 4, 3, 2, 1, 0])
    assert (turned[:, ::-1] == together).all()
    for row in (0, 3, 7):
        alone, alone_infos = walk([row])
        assert (alone[:, 0] == together[:, row]).all()
        for one, all_ in zip(alone_infos, infos, strict=True):
            for name in one:
                np.testing.assert_allclose(one[name][0], all_[name][row], rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("sampler", ALL, ids=ids)
def test_every_number_is_a_leaf_and_the_state_keeps_its_shape(sampler):
    """What jit traces of a sampler are its floats, all of them and nothing else (lehv_top_k sets a shape); a step
    changes nothing but the state, which the next step takes as it is."""
    fields = [value for name, value in vars(sampler).items() if name != "lehv_top_k"]
    several = [value if isinstance(value, tuple) else (value,) for value in fields]
    numbers = [x for values in several for x in values if isinstance(x, float)]
    leaves, structure = jax.tree.flatten(sampler)
    assert leaves == numbers and jax.tree.unflatten(structure, leaves) == sampler
    assert hash(sampler) == hash(eval(repr(sampler), vars(samplers) | {"inf": math.inf}))
    logits = RNG.standard_normal((2, 512))
    token, state, _ = run(sampler, logits)
    again, _, _ = run(sampler, logits)
    assert (token == again).all() and jax.tree.structure(state) == jax.tree.structure(sampler.init(2))
    shapes = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype), s)
    assert shapes(state) == shapes(sampler.init(2))


@pytest.mark.parametrize("sampler", ALL[1:], ids=ids)
def test_different_keys_draw_differently(sampler):
    logits = np.linspace(0, 2, 512)[None]
    assert len({int(run(sampler, logits, seed=i)[0][0]) for i in range(12)}) > 3


def test_the_example_drives_a_sampler_from_torch():
    import torch

    embed, head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50)
    tokens = torch.tensor([[1, 2, 3]])
    example = textwrap.dedent(samplers.__doc__.split("both entropies):\n")[1])
    assert len(example.strip().splitlines()) <= 10
    names = dict(lab=lab, jax=jax, jnp=jnp, torch=torch, tokens=tokens)
    with torch.no_grad():
        exec(example, names | {"torch_model": lambda t: head(embed(t))}, names)
    assert names["tokens"].shape == (1, 23) and names["tokens"].max() < 50


# the threshold sampler


def spike(n_flat, mass, V=8192):
    """One token of probability `mass` and n_flat equally likely others."""
    p = np.zeros(V)
    p[0], p[1 : n_flat + 1] = mass, (1 - mass) / n_flat
    return np.log(np.maximum(p, 1e-30))


QUADRANTS = {
    "LELV": spike(1, 0.9999),
    "HELV": spike(255, 1 / 256),  # 8 bits, varentropy 0
    "LEHV": spike(64, 0.8),  # 1.9 bits, 10 bits^2
    "HEHV": spike(8000, 0.4),  # 8.8 bits, 37 bits^2
    "adaptive": spike(1, 0.7),  # 0.9 bits, 0.3 bits^2
}


@pytest.mark.parametrize("version", samplers.NUMBERS)
def test_each_quadrant_is_reached(version):
    sampler = lab.samplers.adaptive(version, clarifying_id=99)
    _, _, info = run(sampler, np.stack(list(QUADRANTS.values())))
    assert [samplers.BRANCHES[b] for b in info["branch"]] == list(QUADRANTS)


@pytest.mark.parametrize("off", samplers.BRANCHES[:4])
def test_quadrants_can_be_switched_off(off):
    on = tuple(q for q in samplers.BRANCHES[:4] if q != off)
    _, _, info = run(lab.samplers.adaptive(quadrants=on, clarifying_id=99), np.stack(list(QUADRANTS.values())))
    assert [samplers.BRANCHES[b] for b in info["branch"]] == ["adaptive" if q == off else q for q in QUADRANTS]
    with pytest.raises(ValueError, match="unknown quadrants"):
        lab.samplers.adaptive(quadrants=("LEVL",))


@pytest.mark.parametrize("version", samplers.NUMBERS)
def test_branches_and_parameters_are_the_originals(version):
    """Given the published metrics, attention gates on. What was left out is taken out of the original too."""
    g = {name: GOLDEN[f"{version}_{name}"] for name in "metrics branch temperature top_p top_k min_p".split()}
    H, V, hA, vA, agreement, interaction = g["metrics"].T
    sampler = lab.samplers.adaptive(version, attention=True)
    measured = [jnp.asarray(x) for x in (H, V, hA, vA)]
    branch = sampler.branch(*measured)
    assert (np.asarray(branch) == g["branch"]).all()
    ours = {k: np.asarray(v) for k, v in sampler.parameters(branch, *measured).items()}

    drawn = (g["branch"] > 0) & (g["top_k"] > 0)
    expected = g["temperature"].copy()
    if version == "cceeb84":
        free = expected < 1.5  # not at its upper bound
        expected += np.where(g["branch"] == 4, 0.2 * sampler.temperature * agreement, 0)
        expected -= np.where((g["branch"] == 2) & free, 0.3 * sampler.temperature * interaction, 0)
        drawn_T = drawn & ((g["branch"] != 2) | free)
    else:
        drawn_T = drawn & (g["branch"] != 4)  # its temperature fell with entropy, ours does not
    assert drawn.sum() >= 20 and drawn_T.sum() >= 10
    np.testing.assert_allclose(ours["temperature"][drawn_T], expected[drawn_T], rtol=2e-4)
    np.testing.assert_allclose(ours["top_p"][drawn], g["top_p"][drawn], rtol=1e-5)
    np.testing.assert_allclose(ours["min_p"][drawn], g["min_p"][drawn], rtol=1e-4)
    same_k = drawn & (g["branch"] != 4) if version == "cceeb84" else drawn  # interaction strength entered there
    assert (ours["top_k"][same_k] == g["top_k"][same_k]).all()


def test_attention_is_that_of_the_chosen_layer_and_off_by_default():
    attention = jnp.asarray(RNG.random((2, 3, 4)), jnp.float32)
    given = {"entropy": jnp.ones(2), "varentropy": jnp.ones(2), "attention_entropy": attention}
    assert lab.samplers.adaptive().needs == ()
    assert lab.samplers.adaptive().measure(given)[2].tolist() == [0, 0]
    for layer in (-1, 0):
        sampler = lab.samplers.adaptive(attention=True, attention_layer=layer)
        assert sampler.needs == ("attention_entropy",)
        H, V, hA, vA = sampler.measure(given)
        np.testing.assert_allclose(H, 1 / BITS, rtol=1e-6)
        np.testing.assert_allclose(V, 1 / BITS**2, rtol=1e-6)
        np.testing.assert_allclose(hA, attention[:, layer].mean(-1) / BITS, rtol=1e-6)
        np.testing.assert_allclose(vA, np.var(attention[:, layer] / BITS, -1), rtol=1e-5)


def test_asks_again_only_after_something_else_row_by_row():
    sampler = lab.samplers.adaptive(clarifying_id=5000)
    flat, sure = QUADRANTS["HELV"], QUADRANTS["LELV"]
    state, tokens = sampler.init(2), []
    for rows in ([flat, sure], [flat, flat], [flat, flat], [flat, sure]):
        token, state, _ = run(sampler, np.stack(rows), state)
        tokens.append(token.tolist())
    asked = [[t == 5000 for t in step] for step in tokens]
    assert asked == [[True, False], [False, True], [True, False], [False, False]]
    assert not (run(lab.samplers.adaptive(), np.stack([flat, flat]))[0] == 5000).any()  # nothing to ask with


class TestBind:
    def test_the_token_is_the_models_own(self, demo):
        bound = lab.samplers.adaptive().bind(demo.tokenizer)
        assert demo.tokenizer.decode([bound.clarifying_id]) == " ..."
        assert lab.samplers.adaptive(clarifying=None).bind(demo.tokenizer).clarifying_id is None
        assert lab.samplers.dirichlet().bind(demo.tokenizer).vocab_size == demo.config.vocab_size

    def test_what_was_given_is_kept(self, demo):
        assert lab.samplers.adaptive(clarifying_id=7).bind(demo.tokenizer).clarifying_id == 7
        assert lab.samplers.dirichlet(vocab_size=9).bind(demo.tokenizer).vocab_size == 9

    def test_a_string_of_two_tokens_is_refused(self, demo):
        with pytest.raises(ValueError, match="must be one token"):
            lab.samplers.adaptive(clarifying="Could you clarify?").bind(demo.tokenizer)


def test_the_best_of_the_candidates_wins():
    """Of n draws the likeliest: P(token <= i in likelihood order) is 1 - (1 - F_i)^n."""
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    plain = dict(
        quadrants=(),
        temperature=1.0,
        adaptive_temperature_entropy=0.0,
        adaptive_temperature_varentropy=0.0,
        top_p=1.0,
        min_p=0.0,
        adaptive_min_p_entropy=0.0,
    )
    found = counts(lab.samplers.adaptive(**plain, adaptive_candidates=3), logits, n=200_000)
    # min_p is never below 0.01 here, which keeps all four
    best = 1 - (1 - np.cumsum([0.4, 0.3, 0.2, 0.1])) ** 3
    assert stats.chisquare(found, 200_000 * np.diff(best, prepend=0)).pvalue > 1e-4
    one = counts(lab.samplers.adaptive(**plain, adaptive_candidates=1), logits, n=200_000)
    assert stats.chisquare(one, 200_000 * np.array([0.4, 0.3, 0.2, 0.1])).pvalue > 1e-4
    # the entropy is 1.28 nats: 0.3 has the surprisal nearest to it, and wins with enough typicality
    typical = counts(lab.samplers.adaptive(**plain, adaptive_candidates=3, typicality=20.0), logits, n=200_000)
    assert typical.argmax() == 1


def test_draw_needs_no_normalisation():
    keys = jax.random.split(jax.random.key(0), 1000)
    weights = jnp.broadcast_to(jnp.array([1.0, 3.0, 0.0, 4.0]), (1000, 4))
    assert (draw(weights, keys) == draw(weights * 0.125, keys)).all()
