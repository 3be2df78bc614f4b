"""Fitting a Dirichlet distribution to mean log-probabilities, and a temperature to an entropy. Nats, float32."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

TINY = 1e-8
FLOOR = math.log(TINY)
EULER = 0.5772156649


def log_probs(logits):
    """log softmax [B,V], raised to the floor ln 1e-8 and normalised again."""
    return jax.nn.log_softmax(jnp.maximum(jax.nn.log_softmax(logits, -1), FLOOR), -1)


def moments(logp):
    """Entropy and varentropy [B] of log-probabilities [B,V], none of them -inf."""
    p = jnp.exp(logp)
    H = -jnp.sum(p * logp, -1)
    return H, jnp.sum(p * (logp + H[:, None]) ** 2, -1)


def temperature_for_entropy(logp, target, lowest=1e-4, highest=1e4, tolerance=1e-4):
    """The temperature [B] in [lowest, highest] at which softmax(logp / T) [B,V] has the entropy target [B] (nats).

    The entropy rises with T, by Var(logp) / T^2 to each unit of log T: Newton's method in log T, inside a bracket that
    shrinks at each step. A target that cannot be reached ends at the bound that comes nearest."""
    below_top = logp - jnp.max(logp, -1, keepdims=True)
    powers = jnp.stack([jnp.ones_like(logp), below_top, below_top**2], 1)

    def step(carry):
        count, s, low, high, _ = carry
        T = jnp.exp(s)
        p = jnp.exp(below_top / T[:, None])
        total, mean, square = jnp.einsum("BV,BPV->PB", p, powers, precision="highest")  # a GPU would take TF32
        mean, square = mean / total, square / total
        miss = target - (jnp.log(total) - mean / T)
        low, high = jnp.where(miss > 0, s, low), jnp.where(miss > 0, high, s)
        newton = s + miss / jnp.maximum((square - mean**2) / T**2, TINY)
        inside = (newton > low) & (newton < high) & (jnp.abs(newton - s) < 2)
        s = jnp.where(jnp.abs(miss) < tolerance, s, jnp.where(inside, newton, (low + high) / 2))
        return count + 1, s, low, high, miss

    unfinished = lambda carry: (carry[0] < 40) & jnp.any(jnp.abs(carry[-1]) >= tolerance)
    zero = jnp.zeros_like(target)
    start = (0, zero, zero + jnp.log(lowest), zero + jnp.log(highest), zero + 1)
    return jnp.exp(jax.lax.while_loop(unfinished, step, start)[1])


def polygammas(x):
    """digamma and trigamma of x > 0: eight steps of the recurrence, then the asymptotic series (Abramowitz and Stegun
    6.3.18, 6.4.12); a tenth of the time of jax.scipy's."""
    lifted = [1 / (x + i) for i in range(8)]
    z = 1 / (x + 8)
    w = z * z
    psi = -jnp.log(z) - z / 2 - w * (1 / 12 - w * (1 / 120 - w / 252)) - sum(lifted)
    psi1 = z + w / 2 + z * w * (1 / 6 - w * (1 / 30 - w / 42)) + sum(r * r for r in lifted)
    return psi, psi1


def inverse_digamma(y, steps=4):
    """x > 0 with digamma(x) = y, by Newton's method from Minka's start (Estimating a Dirichlet distribution, 2000)."""
    x = jnp.where(y >= -2.22, jnp.exp(jnp.minimum(y, 80.0)) + 0.5, -1 / (y + EULER))

    def newton(_, x):
        psi, psi1 = polygammas(x)
        return x - (psi - y) / psi1

    return jax.lax.fori_loop(0, steps, newton, x)


def fit_dirichlet(mean_logp, prior=0.1, steps=12):
    """The concentration alpha [B,K] of the Dirichlet whose E[log p] is nearest to mean_logp [B,K].

    Objective: the mean log density, sum (alpha - 1) mean_logp + lnGamma(A) - sum lnGamma(alpha) with A = sum alpha,
    less prior * A: an exponential prior with mean 1/prior on the total A. Without it a single distribution (whose
    probabilities add up to 1) has no finite optimum. Where the gradient is 0,
    alpha = inverse_digamma(mean_logp - prior + digamma(A)): one unknown, A, for which Newton's method runs in log A."""
    target = mean_logp - prior
    K = target.shape[-1]

    def step(_, s):
        psi, psi1 = polygammas(jnp.exp(s))
        alpha = inverse_digamma(target + psi)
        total = jnp.sum(alpha, -1, keepdims=True)
        slope = jnp.exp(s) * psi1 * jnp.sum(1 / polygammas(alpha)[1], -1, keepdims=True) / total - 1
        return s + jnp.clip((s - jnp.log(total)) / jnp.minimum(slope, -1e-3), -2, 2)

    s = jax.lax.fori_loop(0, steps, step, jnp.full_like(target[:, :1], math.log(K)))
    return inverse_digamma(target + polygammas(jnp.exp(s))[0])


def log_density(logp, alpha):
    """log Dir(p; alpha) [B] at log-probabilities logp [B,K]."""
    return jnp.sum((alpha - 1) * logp - gammaln(alpha), -1) + gammaln(jnp.sum(alpha, -1))


def on_support(logp, ids):
    """The mean log-probabilities that a Dirichlet on the tokens ids [B,K] has to meet, from those of all tokens [B,V].

    A sub-composition of a Dirichlet is a Dirichlet again, so the K are normalised among themselves, and keep the slack
    of the whole: a mean of the logarithms of different distributions adds up to less than 1, the less the more they
    differ, and that is what bounds the concentration."""
    slack = jax.nn.logsumexp(logp, -1, keepdims=True)
    return jax.nn.log_softmax(jnp.take_along_axis(logp, ids, -1), -1) + jnp.minimum(slack, 0)
