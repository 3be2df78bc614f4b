"""Causes: a run in which values of the forward are replaced on their way, and what became of it."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ..llama.model import KVCache, block, head, no_tap, positions_and_mask, recorder, xfmr
from .metrics import attention_metrics, chosen_metrics, collector, entropy_varentropy
from .trace import Trace, new_trace


@dataclass(frozen=True, eq=False)
class Run:
    """tokens [T]: the prompt's and the new ones; logits [T,V]: of the token after each of them, at least float32;
    trace: of every token but the first, None where none was asked for or there is but one token."""

    tokens: np.ndarray
    logits: np.ndarray
    trace: Trace | None

    def __repr__(self):
        return f"Run({len(self.tokens)} tokens, {self.trace!r})"


def intervene(model, prompt, changes: dict, max_new_tokens: int = 0, trace: bool = True):
    """Run the model with some of its values replaced: a Run, or a list of Runs, one to each row of ids [B,T].

    prompt: text, token ids [T], or [B,T]. changes: to the name of a tap (see ``xfmr_with_taps``) a function, written in
    jax.numpy, of its value, that returns in the same shape and dtype what takes its place; {} changes nothing. Values
    begin with the axis of rows; scores and probs are [B,N,T,S], with S slots for all tokens. For example

        {"layers.5.attention.probs": lambda p: p.at[:, 3].set(0)}         # head 3 of layer 5 writes nothing
        {"layers.5.attention.wo": jnp.zeros_like, "layers.5.feed_forward.w2": jnp.zeros_like}      # nor does layer 5
        {f"layers.{i}.attention.scores": lambda s: s.at[..., 0].add(-1e4) for i in range(30)}  # nobody sees slot 0

    The heads' outputs have no tap: their probabilities do as well, because what a head writes is linear in them. Where
    all rows hold the same prompt one call tries several changes: ``lambda x: x.at[rows, rows].set(y)`` replaces position
    b in row b.

    max_new_tokens: how many tokens follow greedily under the same changes; no token ends it. There a function is handed
    one new position at a time, T = 1, so it should not speak of a position of the prompt.
    The attention metrics of the trace are computed from the scores: a change of the probabilities does not show in them.

    Layers are compiled one by one, and one that is changed anew for each new function in it.
    Raises ValueError for a name that is no tap of this model, a function that returns another shape or dtype, and what
    ``Model.encode`` refuses.
    """
    tokens = model.encode(prompt)
    _check_names(model, changes)
    cache = KVCache.new(model.config, len(tokens), tokens.shape[1] + max_new_tokens, model.dtype)
    now, parts = tokens, []
    with jax.default_matmul_precision(model.matmul_precision):
        for n in range(max_new_tokens + 1):
            start_pos = jnp.full(len(tokens), tokens.shape[1] - now.shape[1], jnp.int32)
            logits, cache, found = _run(model, now, start_pos, cache, changes, trace)
            parts.append({name: np.asarray(x) for name, x in ({"logits": logits} | attention_metrics(found)).items()})
            if n < max_new_tokens:
                now = parts[-1]["logits"][:, -1:].argmax(-1).astype(np.int32)
                tokens = np.concatenate([tokens, now], 1)
    arrays = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
    runs = [Run(*row, None) for row in zip(tokens, arrays.pop("logits"), strict=True)]
    if trace and tokens.shape[1] > 1:
        runs = [_traced(model, run, {name: x[i, :-1] for name, x in arrays.items()}) for i, run in enumerate(runs)]
    return runs if np.ndim(prompt) == 2 else runs[0]


def _run(model, tokens, start_pos, cache, changes, trace):
    """``xfmr`` layer by layer: (logits, cache, what a collector found)."""
    weights, config, tap = model.weights, model.config, writer(changes)
    x = tap("tok_embeddings", weights.tok_embeddings[tokens])
    freqs_cis, mask = positions_and_mask(config, tokens.shape[1], start_pos, cache.max_seq_len, x.dtype)
    k, v, found = list(cache.k), list(cache.v), {}
    for i, w in enumerate(weights.layer_weights):
        prefix = f"layers.{i}."
        here = tuple((name.removeprefix(prefix), f) for name, f in changes.items() if name.startswith(prefix))
        x, k[i], v[i], metrics = _layer(here, trace)(w, config, x, freqs_cis, mask, start_pos, k[i], v[i])
        x = tap(f"layers.{i}", x)
        for name, value in metrics.items():
            found.setdefault(name, []).extend(value)
    return head(weights, config, x, tap), KVCache(tuple(k), tuple(v)), found


@lru_cache(maxsize=64)
def _layer(changes: tuple, trace: bool):
    """block, compiled with changes of (what follows "layers.i.", function) in it: -> (x, keys, values, found)."""

    def run(w, config, x, freqs_cis, mask, start_pos, k, v):
        found, keep = collector()
        tap = writer(dict(changes), keep if trace else no_tap)
        return *block(w, config, x, freqs_cis, mask, start_pos, k, v, tap), found

    return jax.jit(run, static_argnames="config")


def writer(changes: dict, then=no_tap):
    """A tap for ``xfmr`` that makes the changes, and hands what results to the tap then."""

    def tap(name, x):
        if name in changes:
            shown = x.reshape(x.shape[0], -1, *x.shape[3:]) if x.ndim == 5 else x  # [B,K,G,T,S] -> [B,N,T,S]
            new = changes[name](shown)
            found, wanted = (f"{getattr(y, 'dtype', type(y).__name__)} {list(np.shape(y))}" for y in (new, shown))
            if found != wanted:
                raise ValueError(f"the change of {name!r} must return {wanted}, as it is given, found {found}")
            x = jnp.asarray(new).reshape(x.shape)
        return then(name, x)

    return tap


def _traced(model, run, attention):
    entropy, varentropy = entropy_varentropy(run.logits[:-1])
    metrics = chosen_metrics(run.logits[:-1], run.tokens[1:]) | {"entropy": entropy, "varentropy": varentropy}
    arrays = {name: np.asarray(x) for name, x in metrics.items()} | attention
    return replace(run, trace=new_trace(model, run.tokens[:1], run.tokens[1:], arrays))


def _check_names(model, changes):
    """Raise ValueError for a name in changes that the forward does not tap. The names are those of its first layer."""
    one = replace(model.config, n_layers=1)
    weights = model.weights._replace(layer_weights=model.weights.layer_weights[:1])
    taps, tap = recorder()
    jax.eval_shape(lambda cache: xfmr(weights, one, np.zeros((1, 1), np.int32), 0, cache, tap), KVCache.new(one, 1, 1, model.dtype))
    names = {name.replace("layers.0", f"layers.{i}") for name in taps for i in range(model.config.n_layers)}
    for name in changes.keys() - names:
        near = ", ".join(get_close_matches(name, sorted(names), 3)) or "layers.0, layers.0.attention.probs, output, ..."
        raise ValueError(f"the forward has no tap {name!r}. Near it: {near}")
