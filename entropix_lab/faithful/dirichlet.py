"""The Dirichlet sampler of revision 0a7f7bb (2024-11-08), the last public one, bug for bug. Natural logarithms.

It follows a running mean of log-probabilities, to which it fits a Dirichlet; ``step`` is one step of that, ``sample``
what the engine calls: the step, and four quadrants around it that keep or discard what it learnt. Dtypes are its own:
the fit and the temperatures come in bfloat16, everything else in that of the logits and the state.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma

TINY = 1e-8
POLICIES = ("argmax", "inlier", "dirichlet", "out of distribution")


class State(NamedTuple):
    """Running means, a row [B] to each sequence: "naked" of the model, "scaffold" of its mixture with the Dirichlet."""

    emwa_dir: jax.Array  # [B,S] the Dirichlet's concentrations, over the support
    emwa_logp_on_supp: jax.Array  # [B,S]
    emwa_temp: jax.Array
    emwa_ent_scaffold: jax.Array
    emwa_ent_naked: jax.Array
    emwa_varent_scaffold: jax.Array
    emwa_varent_naked: jax.Array
    token_cross_ent_scaffold: jax.Array
    token_cross_ent_naked: jax.Array
    token_cross_var_scaffold: jax.Array
    token_cross_var_naked: jax.Array
    emwa_dir_ent: jax.Array
    emwa_topk_ent_naked: jax.Array


@dataclass(frozen=True)
class Config:
    """The published numbers; the support is the whole vocabulary. Rates weigh the new value."""

    logp_base: float = 4.0
    logp_exponent: float = 3.0
    rate: float = 0.70  # of temperature, dir_ent, topk_ent, and entropies and varentropies
    token_cross_ent_rate: float = 0.65
    token_cross_var_scaffold_rate: float = 0.75
    token_cross_var_naked_rate: float = 0.65
    perturb_base: float = 10.0
    perturb_exponent: float = 1.0
    noise_floor: float = -12.0
    outlier_bilinear: float = 1.3  # times a 4 by 4 matrix of ones
    outlier_state_ent: float = 0.8
    outlier_state_std: float = 0.8
    outlier_naked_ent: float = 1.2
    outlier_naked_varent: float = 1.2
    outlier_bias: float = 0.0
    argmax_weight: float = 0.1
    argmax_bias: float = 1.2
    dirichlet_weight: float = 0.1
    dirichlet_bias: float = 1.2
    target_ent: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    target_inv_temp: float = 8.0
    target_bias: float = 0.0
    outlier_topk: int = 6
    log_of_a_log: bool = True  # False mends the one bug after which every later state is NaN


class Report(NamedTuple):
    """What a step found, [B] each; policy: index into POLICIES."""

    naked_ent: jax.Array
    naked_varent: jax.Array
    scaffold_ent: jax.Array
    scaffold_varent: jax.Array
    naked_token_logprob: jax.Array
    scaffold_token_logprob: jax.Array
    outlier_threshold: jax.Array
    topk_ent: jax.Array
    argmax_threshold: jax.Array
    dir_neg_loglik: jax.Array
    dirichlet_threshold: jax.Array
    policy: jax.Array
    inlier_temp: jax.Array
    target_entropy: jax.Array
    temp: jax.Array


def normalise(logits, floor=-12.0):
    """Log-probabilities of logits [...,V]; those below the floor become ln 1e-8, and nothing is renormalised."""
    below = logits - jnp.max(logits, -1, keepdims=True)
    log_p = below - jax.nn.logsumexp(below + TINY, -1, keepdims=True)
    return jnp.where(log_p < floor, jnp.log(TINY), log_p)


def moments(log_p):
    """Entropy and varentropy [...] of log_p [...,V], nats."""
    p = jnp.exp(log_p)
    H = -jnp.sum(p * log_p, -1)
    return H, jnp.sum(p * (log_p + H[..., None]) ** 2, -1)


def ewma(new, old, rate):
    return rate * new + (1 - rate) * old


def entropy_and_slopes(logits, T):
    """Entropy of softmax(logits / T), its derivative by T, and what is taken for the second: it has mu3, not 2 mu3."""
    scaled = logits / T[..., None]
    p, log_p = jax.nn.softmax(scaled, -1), jax.nn.log_softmax(scaled, -1)
    mean = jnp.sum(p * log_p, -1)
    off = log_p - mean[..., None]
    mu2, mu3 = jnp.sum(p * off**2, -1), jnp.sum(p * off**3, -1)
    return -mean, mu2 / T, -(2 * mu3 + 3 * mu2) / (T * T)


@partial(jax.jit, static_argnames="dtype")
def tune(logits, target, dtype=jnp.bfloat16):
    """(T, converged): ten steps of Halley's method towards the temperature [B] at which softmax(logits [B,V] / T) has
    the entropy target [B]. A target of NaN halves T ten times."""
    logits = logits.astype(jnp.float32)

    def step(_, carry):
        T, converged = carry
        H, slope, second = entropy_and_slopes(logits, T)
        miss = H - target
        converged = converged | (jnp.abs(miss) < 1e-6)
        denominator = 2 * slope * slope - miss * second
        halley = jnp.where(jnp.abs(denominator) > TINY, 2 * miss * slope / denominator, jnp.inf)
        newton = jnp.where(jnp.abs(slope) > TINY, miss / slope, jnp.inf)
        flat = jnp.where(miss > 0, 0.1 * T, -0.1 * T)
        by = jnp.where(jnp.abs(slope) < TINY, flat, jnp.where(jnp.abs(denominator) < TINY, newton, halley))
        by = jnp.clip(by, -0.5 * T, 0.5 * T)
        return jnp.where(converged, T, jnp.maximum(T - by, T / 2)), converged

    start = jnp.ones(len(logits), jnp.float32), jnp.zeros(len(logits), bool)
    T, converged = jax.lax.fori_loop(0, 10, step, start)
    return T.astype(dtype), converged


def halley(alpha, target):
    """The step of Halley's method for psi(alpha) - psi(sum alpha) = target, [...,S]."""
    psi1, psi2 = polygamma(1, alpha), polygamma(2, alpha)
    total = jnp.sum(alpha, -1, keepdims=True)
    total1, total2 = polygamma(1, total), polygamma(2, total)
    inverse = 1.0 / psi1
    denominator = 1.0 - total1 * jnp.sum(inverse, -1, keepdims=True)
    c = total1 / jnp.where(jnp.abs(denominator) < 1e-12, 1e-12, denominator)

    def solve(r):
        r = inverse * r
        return r + c * jnp.sum(r, -1, keepdims=True) * inverse

    x = solve(digamma(alpha) - digamma(total) - target)
    return -x + 0.5 * solve(psi2 * x - total2 * jnp.sum(x, -1, keepdims=True))


@partial(jax.jit, static_argnames="dtype")
def fit(target, dtype=jnp.bfloat16):
    """(alpha [...,S], converged [...]): 140 damped steps towards the Dirichlet with E[log p] = target [...,S]."""
    target = target.astype(jnp.float32)

    def step(n, carry):
        alpha, converged = carry
        miss = digamma(alpha) - digamma(jnp.sum(alpha, -1, keepdims=True)) - target
        converged = converged | (jnp.linalg.norm(miss, axis=-1) < 1e-4)
        n = (n + 1).astype(jnp.float32)
        rate = jnp.maximum(1.2 * jnp.exp(-0.1 * n**0.75) * jnp.abs(jnp.cos(2.0 / n**0.25)), 1e-8)
        by = jnp.clip(rate * halley(alpha, target), -0.5 * alpha, 0.5 * alpha)
        return jnp.where(converged[..., None], alpha, jnp.maximum(alpha + by, alpha / 2)), converged

    start = jnp.ones(target.shape, jnp.float32), jnp.zeros(target.shape[:-1], bool)
    alpha, converged = jax.lax.fori_loop(0, 140, step, start)
    return alpha.astype(dtype), converged


def log_likelihood(log_p, alpha):
    """What stands for the Dirichlet's log density: its normaliser has the wrong sign."""
    return jnp.sum((alpha - 1.0) * log_p, -1) - gammaln(jnp.sum(alpha, -1)) + jnp.sum(gammaln(alpha), -1)


def draw_distribution(key, alpha):
    gamma = jax.random.gamma(key, alpha, shape=alpha.shape)
    return gamma / jnp.sum(gamma, -1, keepdims=True)


@partial(jax.jit, static_argnames=("batch", "config", "dtype"))
def initial_state(logits, batch, config=Config(), dtype=jnp.bfloat16) -> State:  # noqa: B008 (frozen)
    """The State of ``batch`` equal rows after a prompt's logits [1,T,V]."""
    log_p = normalise(logits, config.noise_floor)
    H, V = (x.mean(-1) for x in moments(log_p))
    top = jax.lax.top_k(log_p, config.outlier_topk)[0]
    on_support = normalise(logits, config.noise_floor)
    mean = jnp.mean(on_support, 1)
    alpha = fit(mean)[0]
    zero = jnp.zeros(batch, dtype)
    rows = lambda x: x.repeat(batch, 0)
    return State(
        rows(alpha), rows(mean), jnp.ones(batch, dtype), rows(H), rows(H), zero, rows(V), rows(H),
        rows(-top.mean((1, 2))), zero, rows(top.var((1, 2))), rows(log_likelihood(on_support, alpha[:, None]).mean(-1)),
        rows(moments(normalise(top, config.noise_floor))[0].mean(-1)),
    )  # fmt: skip


@partial(jax.jit, static_argnames=("config", "wild"))
def step(key, state, logits, config=Config(), wild=True):  # noqa: B008 (frozen)
    """(State, tokens [B], Report) of one adaptive Dirichlet step on logits [B,V]. One key serves all draws."""
    c, tiny = config, jnp.array(TINY, logits.dtype)
    x = normalise(logits, c.noise_floor)
    H, V = moments(x)
    names = "token_cross_{}_scaffold token_cross_{}_naked emwa_{}_scaffold emwa_{}_naked".split()
    of = lambda token, mean: (
        jnp.array([getattr(state, n.format(token if n.startswith("token") else mean)) for n in names]).T
    )
    ent, std = of("ent", "ent"), jnp.sqrt(of("var", "varent"))
    outlier = (
        jnp.einsum("bi,ij,bj->b", ent, jnp.ones((4, 4)) * c.outlier_bilinear, std)
        + jnp.einsum("bi,i->b", ent, jnp.ones(4) * c.outlier_state_ent)
        + jnp.einsum("bi,i->b", std, jnp.ones(4) * c.outlier_state_std)
        + H * c.outlier_naked_ent
        + V * c.outlier_naked_varent
        + c.outlier_bias
    )
    out = outlier > 0

    top, ids = jax.lax.top_k(x, c.outlier_topk)
    few = normalise(top, c.noise_floor)
    few_ent = moments(few)[0]
    argmax_threshold = c.argmax_weight * state.emwa_topk_ent_naked + c.argmax_bias
    sure = ~out & (few_ent < argmax_threshold)
    inlier_temp = tune(few, state.emwa_topk_ent_naked)[0]
    inlier = jax.random.categorical(key, few / inlier_temp[:, None])
    among_few = lambda i: jnp.take_along_axis(ids, i[:, None], -1)[:, 0]
    # the sum of 1 / temperature runs over the rows of the batch
    target = jnp.dot(ent, jnp.array(c.target_ent))
    target = target + jnp.sum(jnp.ones(1) * c.target_inv_temp / state.emwa_temp, -1) + c.target_bias
    temp = tune(x.astype(jnp.float32), target)[0]
    tuned = normalise(x / jnp.clip(temp[:, None], 1e-4, 1e4), c.noise_floor)
    g = normalise(tuned, c.noise_floor)
    kl = jnp.sum(jnp.exp(g) * (g - state.emwa_logp_on_supp), -1)
    rate = c.logp_base ** (-c.logp_exponent / (kl + tiny))
    logp = ewma(g, state.emwa_logp_on_supp, rate[..., None])
    alpha = fit(logp)[0]
    surprise = -log_likelihood(g, state.emwa_dir)
    dirichlet_threshold = c.dirichlet_weight * state.emwa_dir_ent + c.dirichlet_bias
    slides = out & (surprise < dirichlet_threshold)
    drawn = draw_distribution(key, alpha) if wild else alpha / jnp.sum(alpha, -1, keepdims=True)
    kl = jnp.sum(drawn * (jnp.log(drawn + tiny) - g), -1)
    share = 1 - jnp.pow(c.perturb_base, -c.perturb_exponent * (1 / (kl + tiny)))
    mixture = share[:, None] * drawn + (1 - share[:, None]) * jnp.exp(g)
    ood = jax.random.categorical(key, jnp.log(drawn + tiny))

    policy = jnp.where(out, jnp.where(slides, 2, 3), jnp.where(sure, 0, 1))
    choices = among_few(jnp.argmax(few, -1)), among_few(inlier), jnp.argmax(mixture, -1), ood
    token = jnp.choose(policy, choices, mode="clip").astype(jnp.int32)

    mix_ent, mix_var = moments(jnp.log(mixture + tiny))
    rows = jnp.arange(len(token))
    scaffold, naked = jnp.log(mixture[rows, token] + tiny), x[rows, token]
    naked = jnp.log(naked + tiny) if c.log_of_a_log else naked
    cross = lambda lp, old: ewma(-lp, old, c.token_cross_ent_rate)
    cross_s, cross_n = cross(scaffold, state.token_cross_ent_scaffold), cross(naked, state.token_cross_ent_naked)
    # the cross-entropy less the log-probability: a sum of two magnitudes, no deviation
    var_s = ewma((cross_s - scaffold) ** 2, state.token_cross_var_scaffold, c.token_cross_var_scaffold_rate)
    var_n = ewma((cross_n - naked) ** 2, state.token_cross_var_naked, c.token_cross_var_naked_rate)
    mean = lambda new, old: ewma(new, old, c.rate)
    new = State(
        alpha, logp, mean(temp, state.emwa_temp), mean(mix_ent, state.emwa_ent_scaffold), mean(H, state.emwa_ent_naked),
        mean(mix_var, state.emwa_varent_scaffold), mean(V, state.emwa_varent_naked), cross_s, cross_n, var_s, var_n,
        mean(surprise, state.emwa_dir_ent), mean(few_ent, state.emwa_topk_ent_naked),
    )  # fmt: skip
    return new, token, Report(
        H, V, mix_ent, mix_var, naked, scaffold, outlier, few_ent, argmax_threshold, surprise, dirichlet_threshold,
        policy, inlier_temp, target, temp,
    )  # fmt: skip


@partial(jax.jit, static_argnames="config")
def sample(state, logits, config=Config(), clarifying=2564, key=None):  # noqa: B008 (frozen)
    """(tokens [B], State, quadrants [B]) on bfloat16 logits [B,V], by the entropy and varentropy of each row.

    LELV and LEHV take the step's token, HELV the clarifying one, and all three give the old State back: the step's is
    thrown away. HEHV forbids that token, steps again with the same key and the default Config, and keeps the result.
    What fits none is LELV. key: None for the original's own, PRNGKey(1337)."""
    key = jax.random.PRNGKey(1337) if key is None else key
    _, token, found = step(key, state, logits, config)
    H, V = found.naked_ent, found.naked_varent
    fits = (H < 0.3) & (V < 1.2), (H > 2.5) & (V < 1.2), (H < 2.5) & (V > 2.5), (H > 1.2) & (V > 2.5)
    quadrant = jnp.argmax(jnp.stack(fits), 0)

    def again(row, z, first):
        one = jax.tree.map(lambda a: a[None], row)
        new, other, _ = step(key, one, z.at[first].set(-jnp.inf)[None], Config(log_of_a_log=config.log_of_a_log))
        return jax.tree.map(lambda a: jnp.bfloat16(a[0]), new), other[0]

    resampled, other = jax.vmap(again)(state, logits, token)
    rows = lambda a: (quadrant == 3).reshape(-1, *[1] * (a.ndim - 1))
    state = jax.tree.map(lambda new, old: jnp.where(rows(new), new, old), resampled, state)
    return jnp.choose(quadrant, (token, clarifying, token, other), mode="clip"), state, quadrant
