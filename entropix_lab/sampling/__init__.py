"""Samplers: pure functions from logits to a token, one decision to a row, usable without the rest of this package.

A sampler is a frozen dataclass with two methods:
    init(batch) -> state                               a pytree whose arrays have a row to each sequence, or ()
    __call__(logits, metrics, state, keys) -> (token, state, info)
logits [B,V] float32; metrics: dict of arrays [B,...], "entropy" and "varentropy" (nats) always among them; keys [B]
typed PRNG keys; token [B] int32; info: dict of arrays [B] that go into the trace. Two things more, where they apply:
    needs: tuple of further metrics, e.g. ("attention_entropy",)
    bind(tokenizer) -> sampler                         a sampler that knows the model's tokens; called once, with None
                                                       where a model has no tokenizer

The samplers here are pytrees (jax.tree_util.register_dataclass). Their numbers are traced, so a new temperature needs
no new program. A sampler of your own that is no pytree must be hashable: it is compiled in, once for each value.

From any other engine, here PyTorch (the plain samplers do not look at the metrics, the others want both entropies):

    sampler = lab.samplers.top_p(0.9)
    state = sampler.init(batch=1)
    for step in range(20):
        logits = jnp.asarray(torch_model(tokens)[:, -1].float().numpy())
        keys = jax.random.split(jax.random.key(step), 1)
        token, state, info = sampler(logits, {}, state, keys)
        tokens = torch.cat([tokens, torch.tensor(token.tolist())[:, None]], 1)
"""

from .adaptive import BRANCHES, NUMBERS, Adaptive, adaptive
from .dirichlet import POLICIES, Dirichlet, dirichlet
from .plain import Greedy, Sample, bound, greedy, min_p, sample, temperature, top_k, top_n_sigma, top_p
from .sloped import Sloped, sloped

NAMES = {"branch": BRANCHES, "policy": POLICIES}  # what the numbers mean that Adaptive and Dirichlet report as info
