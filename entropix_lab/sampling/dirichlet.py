"""A sampler that follows a running distribution over distributions, after the last public entropix (revision 0a7f7bb).

Each step tempers the model's distribution to the entropy of the recent past, averages its log-probabilities with those
of the steps before, and fits a Dirichlet to the average on the step's likeliest tokens. How surprising the step is
decides who chooses: the model (argmax, inlier) or the Dirichlet. All in nats, float32, one decision to a row.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .draw import draw, likeliest
from .fit import FLOOR, TINY, fit_dirichlet, log_density, log_probs, moments, on_support, temperature_for_entropy
from .plain import static

POLICIES = ("argmax", "inlier", "dirichlet", "out of distribution")


class DirichletState(NamedTuple):
    """Running means, a row to each sequence. ent and var [B,4] are four entropies and their spreads: cross-entropy of
    the chosen tokens under the mixture with the Dirichlet and under the model, entropy of the mixture and of the model.
    """

    fresh: jax.Array  # [B] bool: nothing seen yet
    logp: jax.Array  # [B,V] log-probabilities of the tempered distributions
    ent: jax.Array
    var: jax.Array
    topk_ent: jax.Array  # [B] entropy among the outlier_topk likeliest
    dir_ent: jax.Array  # [B] negative log density of the step under the Dirichlet before it
    temp: jax.Array  # [B]


class Step(NamedTuple):
    """What the model says at one step."""

    x: jax.Array  # [B,V] log-probabilities, with a floor
    H: jax.Array  # [B] entropy, nats
    V: jax.Array  # [B] varentropy, nats^2
    top: jax.Array  # [B,K] log-probabilities of the likeliest, the Dirichlet's support
    ids: jax.Array  # [B,K] and their tokens
    few: jax.Array  # [B,outlier_topk] log-probabilities of the first of them, normalised
    few_ent: jax.Array  # [B] and their entropy


class Fitted(NamedTuple):
    """The step beside the distribution over distributions that the steps so far come from."""

    temperature: jax.Array  # [B]
    logp: jax.Array  # [B,V] the running mean with this step in it
    dir_ent: jax.Array  # [B] negative log density of the step under the Dirichlet before it
    dir_ent_before: jax.Array  # [B] and its running mean
    log_dir: jax.Array  # [B,K] the distribution that is drawn from the Dirichlet
    share: jax.Array  # [B] its share of the mixture
    mixture: jax.Array  # [B,K] with the step


def ewma(rate, new, old):
    return rate * new + (1 - rate) * old


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dirichlet:
    """The sampler described at the top of this file; rates, thresholds and targets are its fields. Of its reports,
    "distance" is the total variation between the distribution that the step's token was drawn from and the model's.

    Rates weigh the new value and are the published ones. The published thresholds call every step an outlier, and the
    published target entropy (at least 8 nats) is above what a vocabulary gives, so those have defaults of their own,
    under which each policy is taken on real text.
    """

    vocab_size: int | None = static(default=None)  # set by bind unless given
    support: int = static(default=256)  # the step's likeliest tokens, on which the Dirichlet lives
    prior: float = 0.1  # of fit_dirichlet: the mean of the prior on the total concentration is 1/prior
    wild: bool = static(default=True)  # draw a distribution from the Dirichlet; False takes its mean

    logp_base: float = 4.0  # rate of logp: base ** (-exponent / KL(step || running mean))
    logp_exponent: float = 3.0
    mix_base: float = 10.0  # the Dirichlet's share of the mixture: 1 - base ** (-exponent / KL(drawn || step))
    mix_exponent: float = 1.0
    ent_rates: tuple[float, ...] = (0.65, 0.65, 0.7, 0.7)
    var_rates: tuple[float, ...] = (0.75, 0.65, 0.7, 0.7)
    rate: float = 0.7  # of the other running means

    # an outlier: bilinear * sum(ent) * sum(std) + ent * sum(ent) + std * sum(std)
    #             + naked_ent * H + naked_varent * V + bias > 0, with the entropy and varentropy of the step
    outlier_bilinear: float = 0.02
    outlier_ent: float = -0.55
    outlier_std: float = 0.1
    outlier_naked_ent: float = 1.2
    outlier_naked_varent: float = 0.3
    outlier_bias: float = 0.0
    outlier_topk: int = static(default=6)
    # not an outlier: argmax if the entropy among the topk is below weight * its running mean + bias, else inlier
    argmax_weight: float = 0.5
    argmax_bias: float = 0.0
    # an outlier: the Dirichlet's choice if -log density is below weight * its running mean + bias, else a draw from it
    dirichlet_weight: float = 1.0
    dirichlet_bias: float = 0.0
    target_ent: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)  # target entropy of a step: of the four running entropies
    target_inv_temp: float = 0.0
    target_bias: float = 0.0
    min_temperature: float = 1e-4
    max_temperature: float = 1e4

    def bind(self, tokenizer):
        return replace(self, vocab_size=tokenizer.n_words) if tokenizer and self.vocab_size is None else self

    def init(self, batch):
        if self.vocab_size is None:
            raise ValueError(
                "vocab_size is not set, and there is no tokenizer to tell it: dirichlet(vocab_size=...) gives it"
            )
        of = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)
        return DirichletState(jnp.ones(batch, bool), of(self.vocab_size), of(4), of(4), of(), of(), of() + 1)

    def __call__(self, logits, metrics, state, keys):
        if logits.shape != state.logp.shape:
            raise ValueError(f"expected logits of {state.logp.shape} by vocab_size, found {logits.shape}")
        step, old = self.observe(logits, metrics, state)
        fitted = self.fit(step, old, keys)
        policy, chosen, distance = self.choose(step, fitted, old, keys)
        state = self.update(step, fitted, old, chosen)
        info = {
            "policy": policy,
            "temperature": fitted.temperature,
            "target_entropy": self.target(old),
            "dirichlet_share": fitted.share,
            "distance": distance,
        }
        return jnp.take_along_axis(step.ids, chosen, -1)[:, 0].astype(jnp.int32), state, info

    def observe(self, logits, metrics, state):
        """The Step, and the state before it; where a sequence begins, what the step itself says stands for the past."""
        x = log_probs(logits)
        top, ids = likeliest(x, min(self.support, x.shape[-1]))
        few = jax.nn.log_softmax(top[:, : self.outlier_topk], -1)
        step = Step(x, metrics["entropy"], metrics["varentropy"], top, ids, few, moments(few)[0])
        first = lambda new, old: jnp.where(state.fresh.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        return step, state._replace(
            logp=first(x, state.logp),
            ent=first(step.H[:, None], state.ent),
            var=first(step.V[:, None], state.var),
            topk_ent=first(step.few_ent, state.topk_ent),
        )

    def fit(self, step, old, keys):
        """The step at the temperature of the recent past, the Dirichlets before and after it, and the mixture."""
        temperature = temperature_for_entropy(step.x, self.target(old), self.min_temperature, self.max_temperature)
        tempered = log_probs(step.x / temperature[:, None])
        divergence = jnp.sum(jnp.exp(tempered) * (tempered - old.logp), -1)
        rate = self.logp_base ** (-self.logp_exponent / jnp.maximum(divergence, TINY))
        logp = ewma(rate[:, None], tempered, old.logp)
        before, alpha = (fit_dirichlet(on_support(mean, step.ids), self.prior) for mean in (old.logp, logp))
        supported = jax.nn.log_softmax(jnp.take_along_axis(tempered, step.ids, -1), -1)
        dir_ent = -log_density(supported, before)

        for_gamma = self._keys(keys)[0]
        log_dir = jax.vmap(jax.random.loggamma)(for_gamma, alpha) if self.wild else jnp.log(alpha)
        log_dir = jax.nn.log_softmax(log_dir, -1)
        away = jnp.sum(jnp.exp(log_dir) * (jnp.maximum(log_dir, 4 * FLOOR) - supported), -1)
        share = 1 - self.mix_base ** (-self.mix_exponent / jnp.maximum(away, TINY))
        mixture = ewma(share[:, None], jnp.exp(log_dir), jnp.exp(supported))
        dir_ent_before = jnp.where(old.fresh, dir_ent, old.dir_ent)
        return Fitted(temperature, logp, dir_ent, dir_ent_before, log_dir, share, mixture)

    def choose(self, step, fitted, old, keys):
        """The policy [B], the index [B,1] of its token among the step's likeliest, and how far the distribution that it
        was drawn from lies from the model's, [B]."""
        _, for_inlier, for_ood = self._keys(keys)
        typical = fitted.dir_ent < self.dirichlet_weight * fitted.dir_ent_before + self.dirichlet_bias
        policy = jnp.where(
            self.outlier(old, step.H, step.V) > 0,
            jnp.where(typical, 2, 3),
            jnp.where(step.few_ent < self.argmax_weight * old.topk_ent + self.argmax_bias, 0, 1),
        )
        at = temperature_for_entropy(step.few, old.topk_ent, self.min_temperature, self.max_temperature)
        few = jax.nn.softmax(step.few / at[:, None], -1)
        drawn, ood = draw(few, for_inlier), draw(jnp.exp(fitted.log_dir), for_ood)
        candidates = [jnp.zeros_like(drawn), drawn, jnp.argmax(fitted.mixture, -1), ood]
        chosen = jnp.choose(policy, candidates, mode="clip")[:, None]

        K = step.top.shape[-1]
        one_hot = lambda index: jax.nn.one_hot(index, K)
        few = jnp.pad(few, ((0, 0), (0, K - few.shape[-1])))
        of_policy = jnp.stack([one_hot(candidates[0]), few, one_hot(candidates[2]), jnp.exp(fitted.log_dir)])
        drawn_from = jnp.take_along_axis(of_policy, policy[None, :, None], 0)[0]
        return policy, chosen, 1 - jnp.sum(jnp.minimum(drawn_from, jnp.exp(step.top)), -1)

    def update(self, step, fitted, old, chosen):
        """The running means with this step in them."""
        log_mixture = jnp.log(fitted.mixture + TINY)
        log_chosen = jnp.concatenate([jnp.take_along_axis(lp, chosen, -1) for lp in (log_mixture, step.top)], -1)
        mix_ent, mix_var = moments(log_mixture)
        ent_rates, var_rates = jnp.array(self.ent_rates), jnp.array(self.var_rates)
        ent = ewma(ent_rates, jnp.concatenate([-log_chosen, mix_ent[:, None], step.H[:, None]], -1), old.ent)
        spread = (log_chosen + ent[:, :2]) ** 2
        return DirichletState(
            jnp.zeros_like(old.fresh),
            fitted.logp,
            ent,
            ewma(var_rates, jnp.concatenate([spread, mix_var[:, None], step.V[:, None]], -1), old.var),
            ewma(self.rate, step.few_ent, old.topk_ent),
            ewma(self.rate, fitted.dir_ent, fitted.dir_ent_before),
            ewma(self.rate, fitted.temperature, old.temp),
        )

    def _keys(self, keys):
        """For the Dirichlet, for an inlier and for what is out of distribution, a key to each row."""
        return jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)

    def outlier(self, state, H, V):
        """How much of an outlier a step with entropy H and varentropy V [B] is; above 0 it is one."""
        ent, std = state.ent.sum(-1), jnp.sqrt(state.var).sum(-1)
        of_state = self.outlier_bilinear * ent * std + self.outlier_ent * ent + self.outlier_std * std
        return of_state + self.outlier_naked_ent * H + self.outlier_naked_varent * V + self.outlier_bias

    def target(self, state):
        """The entropy [B] to which the step is tempered."""
        of_ent = jnp.matmul(state.ent, jnp.array(self.target_ent), precision="highest")
        return of_ent + self.target_inv_temp / state.temp + self.target_bias


def dirichlet(vocab_size: int | None = None, **changes) -> Dirichlet:
    """The Dirichlet sampler; without a vocab_size it takes that of the tokenizer that it is bound to. changes: by the
    names of Dirichlet's fields."""
    return Dirichlet(vocab_size=vocab_size, **changes)
