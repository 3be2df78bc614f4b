"""Samplers draw from the distributions that define them and decide each row alone."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import entropix_lab as lab
from entropix_lab import samplers
from entropix_lab.draw import draw, likeliest, nucleus_floor


def metrics(logits):
    log_p = jax.nn.log_softmax(logits, -1)
    p = jnp.exp(log_p)
    surprisal = jnp.where(p > 0, -log_p, 0)
    entropy = jnp.sum(p * surprisal, -1)
    return {"entropy": entropy, "varentropy": jnp.sum(p * (surprisal - entropy[:, None]) ** 2, -1)}


def run(sampler, logits, state=None, seed=0):
    """One step on logits [B,V], row i with its own key."""
    logits = jnp.asarray(logits, jnp.float32)
    keys = jax.random.split(jax.random.key(seed), len(logits))
    state = sampler.init(len(logits)) if state is None else state
    step = jax.jit(lambda logits, state, keys: sampler(logits, metrics(logits), state, keys))
    return step(logits, state, keys)


def counts(sampler, logits, n=1_000_000, rows=20_000):
    """How often each token of one distribution [V] is drawn in n draws."""
    logits = jnp.asarray(logits, jnp.float32)
    batch = jnp.broadcast_to(logits, (rows, len(logits)))

    @jax.jit
    def some(batch, key):  # an argument: XLA would spend its time on folding a constant batch
        keys = jax.random.split(key, rows)
        token, _, _ = sampler(batch, metrics(logits[None]), sampler.init(rows), keys)
        return jnp.zeros(len(logits), jnp.int32).at[token].add(1)

    return sum(np.asarray(some(batch, key), np.int64) for key in jax.random.split(jax.random.key(1), n // rows))


def by_definition(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The probabilities in float64, by sorting."""
    p = stats_softmax(np.asarray(logits, np.float64) / temperature)
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


def stats_softmax(z):
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
    dict(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05),
    dict(top_k=7, top_p=0.55),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_million_draws_follow_the_definition(setting):
    found = counts(lab.samplers.sample(**setting), LOGITS)
    expected = by_definition(LOGITS, **setting)
    assert (found[expected == 0] == 0).all() and found.sum() == 1_000_000
    assert stats.chisquare(found[expected > 0], 1e6 * expected[expected > 0]).pvalue > 1e-4


def test_a_draw_over_many_blocks():
    """Blocks of the vocabulary, its last one partly padding, and tokens of probability 0 in between."""
    weights = RNG.random(700) ** 8 * (RNG.random(700) < 0.7)
    weights[256:512] = 0
    found = counts(lab.samplers.sample(), np.log(np.maximum(weights, 1e-30)), rows=10_000)
    expected = weights / weights.sum()
    rare = expected * 1e6 < 10
    observed = np.append(found[~rare], found[rare].sum())
    assert found[256:512].sum() == 0
    assert stats.chisquare(observed, 1e6 * np.append(expected[~rare], expected[rare].sum())).pvalue > 1e-4


def test_short_spellings():
    s = lab.samplers
    assert s.temperature(0.5) == s.sample(0.5) and s.top_k(3) == s.sample(top_k=3)
    assert s.top_p(0.9, temperature=0.5) == s.sample(0.5, top_p=0.9) and s.min_p(0.1) == s.sample(min_p=0.1)
    assert s.sample(temperature=0) == s.greedy()


@pytest.mark.parametrize("bad", [dict(temperature=-1), dict(top_k=0), dict(top_p=0), dict(top_p=1.1), dict(min_p=-0.1)])
def test_what_makes_no_distribution_is_refused(bad):
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
        step = jax.jit(lambda z, state, keys: sampler(z, metrics(z), state, keys))
        for z in steps:
            token, state, info = step(jnp.asarray(z[rows], jnp.float32), state, keys[np.array(rows)])
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
def test_a_sampler_is_static_and_pure(sampler):
    assert hash(sampler) == hash(eval(repr(sampler), vars(samplers)))
    logits = RNG.standard_normal((2, 512))
    token, state, _ = run(sampler, logits)
    again, _, _ = run(sampler, logits)
    assert (token == again).all() and jax.tree.structure(state) == jax.tree.structure(sampler.init(2))
    shapes = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype), s)
    assert shapes(state) == shapes(sampler.init(2))


def test_different_keys_draw_differently():
    for sampler in ALL[1:]:
        tokens = {
            int(run(sampler, RNG.standard_normal((1, 512)) * 0 + np.linspace(0, 2, 512), seed=i)[0][0])
            for i in range(12)
        }
        assert len(tokens) > 3, sampler


def test_the_example_drives_a_sampler_from_torch():
    import torch

    embed, head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50)
    tokens = torch.tensor([[1, 2, 3]])
    example = textwrap.dedent(samplers.__doc__.split("here PyTorch:\n")[1])
    assert len(example.strip().splitlines()) <= 10
    names = dict(lab=lab, jax=jax, jnp=jnp, torch=torch, tokens=tokens)
    with torch.no_grad():
        exec(example, names | {"torch_model": lambda t: head(embed(t))}, names)
    assert names["tokens"].shape == (1, 23) and names["tokens"].max() < 50


def test_draw_needs_no_normalisation():
    keys = jax.random.split(jax.random.key(0), 1000)
    weights = jnp.broadcast_to(jnp.array([1.0, 3.0, 0.0, 4.0]), (1000, 4))
    assert (draw(weights, keys) == draw(weights * 0.125, keys)).all()
