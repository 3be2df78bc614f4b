"""The Dirichlet sampler's parts against float64 and the original's numbers, and its decisions step by step."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

import entropix_lab as lab
from entropix_lab.sampling.dirichlet import POLICIES, DirichletState
from entropix_lab.sampling.fit import (
    fit_dirichlet,
    inverse_digamma,
    log_density,
    log_probs,
    moments,
    on_support,
    polygammas,
    temperature_for_entropy,
)

pytestmark = pytest.mark.in_haste

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "samplers.npz")
RNG = np.random.default_rng(11)
metrics = lambda logits: dict(zip(("entropy", "varentropy"), lab.entropy_varentropy(logits), strict=True))


def test_polygammas_and_the_inverse():
    x = np.geomspace(1e-4, 1e6, 500)
    psi, psi1 = polygammas(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(psi, special.digamma(x), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(psi1, special.polygamma(1, x), rtol=2e-6)
    back = inverse_digamma(jnp.asarray(special.digamma(x), jnp.float32))
    np.testing.assert_allclose(back, x, rtol=2e-5)


def test_log_density_is_that_of_scipy():
    alpha = RNG.gamma(1.0, 1.0, (20, 6)) + 0.2
    p = np.stack([RNG.dirichlet(a) for a in alpha]).clip(1e-6)
    p /= p.sum(1, keepdims=True)
    ours = log_density(jnp.log(jnp.asarray(p, jnp.float32)), jnp.asarray(alpha, jnp.float32))
    np.testing.assert_allclose(
        ours, [stats.dirichlet.logpdf(q, a) for q, a in zip(p, alpha, strict=True)], rtol=1e-4, atol=1e-4
    )


def exact_fit(target, prior):
    """The optimum in float64, by a root in log of the total."""

    def alpha(s):
        y = target - prior + special.digamma(np.exp(s))
        x = np.where(y >= -2.22, np.exp(y) + 0.5, -1 / (y - special.digamma(1)))
        for _ in range(30):
            x = np.maximum(x - (special.digamma(x) - y) / special.polygamma(1, x), x / 10)
        return x

    return alpha(optimize.brentq(lambda s: np.log(alpha(s).sum()) - s, -20, 25))


class TestFit:
    @pytest.mark.parametrize("prior", [0.01, 0.1, 1.0])
    @pytest.mark.parametrize("spread", [0.5, 3.0])
    def test_of_one_distribution_is_finite_and_exact(self, prior, spread):
        """Its probabilities add up to 1: without the prior there is no optimum."""
        logp = np.asarray(log_probs(jnp.asarray(RNG.standard_normal((4, 256)) * spread, jnp.float32)))
        found = np.asarray(fit_dirichlet(jnp.asarray(logp), prior))
        expected = np.stack([exact_fit(row.astype(np.float64), prior) for row in logp])
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        mean, exact_mean = (a / a.sum(1, keepdims=True) for a in (found, expected))
        assert (np.abs(mean - exact_mean).sum(1) / 2 < 1e-4).all()

    def test_finds_the_dirichlet_that_made_the_sample(self):
        alpha = RNG.gamma(2.0, 1.0, 12) + 0.3
        mean = np.log(RNG.dirichlet(alpha, 200_000).clip(1e-30)).mean(0)
        np.testing.assert_allclose(fit_dirichlet(jnp.asarray(mean[None], jnp.float32), prior=0.0)[0], alpha, rtol=0.03)

    def test_a_support_of_everything_changes_nothing(self):
        mean = 0.5 * log_probs(jnp.asarray(RNG.standard_normal((2, 30)), jnp.float32)) - 2.0
        everything = jnp.broadcast_to(jnp.arange(30), (2, 30))
        np.testing.assert_allclose(on_support(mean, everything), mean, atol=1e-5)

    def test_its_mean_comes_near_the_distribution_itself(self):
        """Total variation between the fitted mean and the exact distribution on a support of 256 tokens: it shrinks
        with the prior, as the concentration grows."""
        exact = log_probs(jnp.asarray(RNG.standard_normal((8, 256)) * 2, jnp.float32))
        far = []
        for prior in (1.0, 0.1, 0.01):
            alpha = fit_dirichlet(exact, prior)
            far.append(float(jnp.abs(alpha / alpha.sum(-1, keepdims=True) - jnp.exp(exact)).sum(-1).mean() / 2))
        assert far[0] > far[1] > far[2] and far[1] < 0.1 and far[2] < 0.02

    @pytest.mark.parametrize("support", [16, 64, 300])
    def test_the_fitted_mean_is_that_in_float64(self, support):
        logits = RNG.standard_normal((4, 300)) * 2
        ids = np.argsort(-logits)[:, :support]
        found = np.asarray(fit_dirichlet(on_support(log_probs(jnp.asarray(logits, jnp.float32)), ids), 0.05))
        for z, alpha in zip(np.take_along_axis(logits, ids, -1), found, strict=True):
            exact = exact_fit(special.log_softmax(z), 0.05)
            assert np.abs(alpha / alpha.sum() - exact / exact.sum()).sum() / 2 < 1e-3


class TestTemperatureForEntropy:
    @pytest.mark.parametrize("target", [0.05, 0.7, 2.0, 4.0])
    def test_reaches_the_entropy(self, target):
        logp = log_probs(
            jnp.asarray(RNG.standard_normal((6, 300)) * np.array([[0.5], [1], [2], [4], [8], [20]]), jnp.float32)
        )
        T = temperature_for_entropy(logp, jnp.full(6, target))
        reached = moments(jnp.maximum(jax.nn.log_softmax(logp / T[:, None], -1), -1e4))[0]
        np.testing.assert_allclose(reached, target, atol=3e-4)

    def test_is_the_originals_where_that_converged(self):
        logits = jnp.asarray(GOLDEN["tt_logits"])
        converged = 0
        for i, target in enumerate(GOLDEN["tt_targets"]):
            if not 0.05 < target < 4.0:
                continue
            T = np.asarray(temperature_for_entropy(jax.nn.log_softmax(logits, -1), jnp.full(5, target)))
            ok = GOLDEN["tt_converged"][i]
            converged += ok.sum()
            np.testing.assert_allclose(T[ok], GOLDEN["tt_T_f32"][i][ok], rtol=2e-3)
        assert converged >= 10

    def test_ends_at_the_bound_when_out_of_reach(self):
        logp = log_probs(jnp.asarray(RNG.standard_normal((1, 64)), jnp.float32))
        assert temperature_for_entropy(logp, jnp.array([9.0]), 0.01, 50.0)[0] > 49
        assert temperature_for_entropy(logp, jnp.array([-1.0]), 0.01, 50.0)[0] < 0.011


def test_log_probs_have_a_floor_and_add_up():
    x = log_probs(jnp.array([[0.0, -jnp.inf, -50.0, 1.0]]))
    np.testing.assert_allclose(jnp.exp(x).sum(), 1, rtol=1e-6)
    assert (x >= -18.43).all()


def test_thresholds_are_the_originals():
    """Given the original's state, with the config that its figures were made with; its target entropy summed 1/T over
    the rows of the batch, which is undone here."""
    g = lambda name: jnp.asarray(GOLDEN[f"step_{name}"])
    old = lambda name: g(f"state_{name}")[:-1]
    names = "token_cross_{}_scaffold token_cross_{}_naked emwa_{}_scaffold emwa_{}_naked".split()
    ent = jnp.stack([old(n.format("ent")) for n in names], -1)
    var = jnp.stack([old(n.format("var" if n.startswith("token") else "varent")) for n in names], -1)
    sampler = lab.samplers.dirichlet(64, target_ent=(0.1, 0.2, 0.1, 0.2), target_inv_temp=0.5)
    checked = 0
    for i in range(20):
        temp = old("emwa_temp")[i]
        state = DirichletState(None, None, ent[i], var[i], old("emwa_topk_ent_naked")[i], None, temp)
        if not bool(jnp.isfinite(var[i]).all()):
            continue
        checked += 1
        ours = sampler.outlier(state, g("naked_ent")[i], g("naked_varent")[i])
        np.testing.assert_allclose(ours, g("outlier_threshold")[i], rtol=2e-3, atol=2e-3)
        expected = g("target_entropy")[i] - jnp.sum(0.5 / temp) + 0.5 / temp
        np.testing.assert_allclose(sampler.target(state), expected, rtol=2e-3)
        few = jax.nn.log_softmax(jax.lax.top_k(g("logits")[i], 6)[0], -1)
        np.testing.assert_allclose(moments(few)[0], g("topk_ent")[i], rtol=1e-4, atol=1e-5)
        threshold = sampler.argmax_weight * state.topk_ent + sampler.argmax_bias
        np.testing.assert_allclose(threshold, g("argmax_threshold")[i], rtol=2e-3)
    assert checked == 20


def walk(sampler, logits, seed=0):
    """All steps [T,B,V] -> (tokens [T,B], last state, infos)."""
    step = jax.jit(lambda z, state, keys: sampler(z, metrics(z), state, keys))
    state, tokens, infos = sampler.init(logits.shape[1]), [], []
    for i, z in enumerate(jnp.asarray(logits, jnp.float32)):
        token, state, info = step(z, state, jax.random.split(jax.random.key(seed + i), len(z)))
        tokens.append(token)
        infos.append(info)
    return np.stack(tokens), state, {k: np.stack([i[k] for i in infos]) for k in infos[0]}


def test_every_policy_is_taken_and_follows_its_rule():
    rng = np.random.default_rng(0)
    scale = np.exp(rng.uniform(-1, 3, (30, 16, 1)))
    logits = rng.standard_normal((30, 16, 400)) * scale
    tokens, state, info = walk(lab.samplers.dirichlet(400), logits)
    assert sorted(set(info["policy"].ravel())) == list(range(len(POLICIES)))
    best = logits.argmax(-1)
    assert (tokens[info["policy"] == 0] == best[info["policy"] == 0]).all()
    top6 = np.argsort(-logits, -1)[..., :6]
    assert (tokens[..., None] == top6).any(-1)[info["policy"] == 1].all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    of_argmax = info["policy"] == 0  # all mass on one token: the others' mass is the distance
    np.testing.assert_allclose(info["distance"][of_argmax], 1 - p.max(-1)[of_argmax], atol=1e-4)
    assert (info["distance"] > -1e-5).all() and (info["distance"] <= 1 + 1e-5).all()


def test_state_is_kept():
    """The same last step after two different pasts: another temperature, another target."""
    rng = np.random.default_rng(0)
    past, last = rng.standard_normal((5, 4, 200)), rng.standard_normal((1, 4, 200)) * 3
    after = lambda scale: walk(lab.samplers.dirichlet(200), np.concatenate([past * scale, last]))
    calm, wild = after(9.0)[2], after(0.3)[2]
    assert (calm["target_entropy"][-1] < wild["target_entropy"][-1]).all()
    assert (calm["temperature"][-1] < wild["temperature"][-1]).all()
    assert not (calm["policy"][-1] == wild["policy"][-1]).all()


def test_draws_of_the_dirichlet_have_its_mean():
    """A row that is out of distribution draws from a drawn distribution: altogether, from the Dirichlet's mean."""
    logits = jnp.asarray(np.tile(np.log([0.4, 0.3, 0.15, 0.1, 0.05]), (20_000, 1)), jnp.float32)
    # an outlier always, never typical
    sampler = lab.samplers.dirichlet(5, outlier_bias=1e6, dirichlet_bias=-1e6, prior=0.5)
    token, state, info = jax.jit(lambda z, s, k: sampler(z, metrics(z), s, k))(
        logits, sampler.init(20_000), jax.random.split(jax.random.key(3), 20_000)
    )
    assert (info["policy"] == 3).all()
    alpha = np.asarray(fit_dirichlet(state.logp[:1], 0.5), np.float64)[0]
    found = np.bincount(np.asarray(token), minlength=5)
    assert stats.chisquare(found, 20_000 * alpha / alpha.sum()).pvalue > 1e-4


def test_a_vocabulary_must_be_known():
    with pytest.raises(ValueError, match="vocab_size"):
        lab.samplers.dirichlet().init(1)
