"""Causes: a run in which values of the forward are replaced on their way, and what became of it."""

import math
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ..llama.model import KVCache, block, by_query_head, head, no_tap, positions_and_mask, xfmr_with_taps
from ..llama.prefill import cache_beside
from ..llama.sharding import gathered
from .metrics import attention_metrics, collector, trace_metrics
from .trace import Trace, new_trace


@dataclass(frozen=True, eq=False)
class Run:
    """tokens [T]: the prompt's and the new ones; logits [T,V]: of the token after each of them, at least float32;
    trace: of every token but the first, None where none was asked for or there is but one token; kept: the values that
    were asked for, by tap, as the prompt left them, without the axis of rows. The arrays may be views that cannot be
    written to."""

    tokens: np.ndarray
    logits: np.ndarray
    trace: Trace | None
    kept: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self):
        return f"Run({len(self.tokens)} tokens, {self.trace!r})"


def intervene(model, prompt, changes: dict, max_new_tokens: int = 0, trace: bool = True, keep=()):
    """Run the model with some of its values replaced: a Run, or a list of Runs, one to each row of ids [B,T].

    prompt: text, token ids [T], or [B,T]. changes: to the name of a tap (see ``xfmr_with_taps``) a function, written in
    jax.numpy, of its value, that returns in the same shape and dtype what takes its place; {} changes nothing. Values
    begin with the axis of rows; scores and probs are [B,N,T,S], with S slots for all tokens. For example

        {"layers.5.attention.probs": lambda p: p.at[:, 3].set(0)}         # head 3 of layer 5 writes nothing
        {"layers.5.attention.wo": jnp.zeros_like, "layers.5.feed_forward.w2": jnp.zeros_like}      # nor does layer 5
        {f"layers.{i}.attention.scores": lambda s: s.at[..., 0].add(-1e4) for i in range(30)}  # nobody sees slot 0

    The heads' outputs have no tap: their probabilities do as well, because what a head writes is linear in them. Where
    all rows hold the same prompt one call tries several changes: ``lambda x: x.at[rows, rows].set(y)`` replaces
    position b in row b.

    max_new_tokens: how many tokens follow greedily under the same changes; no token ends it. There a function is handed
    one new position at a time, T = 1, so it should not speak of a position of the prompt.
    trace: False is quicker. Its attention metrics are computed from the scores: a change of the probabilities does not
    show in them. keep: names of taps whose values are wanted too, after the changes, for instance to hand them to
    another run.

    Layers are compiled one by one, and one that is changed anew for each new function in it.
    Raises ValueError for a name that is no tap of this model, a function that returns another shape or dtype, and what
    ``Model.encode`` refuses.
    """
    _check_names(model, [*changes, *keep])
    return _intervene(model, prompt, changes, max_new_tokens, trace, keep, None)


def sweep(model, prompt, several, trace: bool = True, keep=()):
    """``intervene`` with each of several changes in turn: an iterator of what it returns for each of them.

    For the same question to every layer or head: layers before the first one that a change reaches are computed once
    for all of them, and what they gave is held while there are changes left. Names are checked before anything runs.
    """
    several, before = list(several), []
    _check_names(model, [*keep, *(name for changes in several for name in changes)])
    return (_intervene(model, prompt, changes, 0, trace, keep, before) for changes in several)


def _intervene(model, prompt, changes, max_new_tokens, trace, keep, before):
    tokens = model.encode(prompt)
    cache = cache_beside(model.weights, model.config, len(tokens), tokens.shape[1] + max_new_tokens)
    now, parts, kept = tokens, [], None
    for n in range(max_new_tokens + 1):
        start_pos = jnp.full(len(tokens), tokens.shape[1] - now.shape[1], jnp.int32)
        logits, cache, found, seen = _run(model, now, start_pos, cache, changes, trace, keep, before)
        part, seen = gathered(({"logits": logits} | found, {} if n else seen))
        kept = kept if n else {name: np.asarray(x) for name, x in seen.items()}
        parts.append(part)
        if n < max_new_tokens:
            now = np.asarray(part["logits"][:, -1:].argmax(-1), np.int32)
            tokens = np.concatenate([tokens, now], 1)
    arrays = parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts], 1) for n in parts[0]}
    if trace and tokens.shape[1] > 1:  # on one device, where nothing is copied if it is the only one
        arrays |= _metrics(jax.device_put(arrays["logits"], jax.local_devices()[0]), tokens)
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    of_row = lambda values, i: {name: x[i] for name, x in values.items()}
    runs = [_of_row(model, tokens[i], of_row(arrays, i), of_row(kept, i)) for i in range(len(tokens))]
    return runs if np.ndim(prompt) == 2 else runs[0]


def effects(before, after, part=slice(None)) -> dict[str, tuple[float, float]]:
    """What a change did to rows: of surprisal and entropy (nats) and varentropy (nats^2) the (difference, half a 95 %
    interval), after minus before.

    before, after: Runs of the same rows, in the same order; part: which tokens of their traces count. A row's tokens go
    together: the interval is Student's over the rows' mean differences, and NaN for a single row.
    """
    from scipy import stats

    mean = lambda run, name: getattr(run.trace, name)[part].mean(dtype=np.float64)
    found = {}
    for name in ("surprisal", "entropy", "varentropy"):
        d = np.array([mean(b, name) - mean(a, name) for a, b in zip(before, after, strict=True)])
        half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
        found[name] = float(d.mean()), float(half)
    return found


def _run(model, tokens, start_pos, cache, changes, trace, keep, before):
    """``transformer`` and ``head``, layer by layer: (logits, cache, attention metrics, what is kept).

    before: None, or a list of what the layers give that no change reaches, as far as they were computed: it grows."""
    weights, config, kept, found = model.weights, model.config, {}, {}
    tap = writer(changes, keep, kept)
    x = tap("tok_embeddings", weights.tok_embeddings[tokens])
    freqs_cis, mask = positions_and_mask(config, tokens.shape[1], start_pos, cache.max_seq_len, x.dtype)
    new_k, new_v, first = [], [], 0 if before is None else min(map(_first_reached, changes), default=config.n_layers)
    for i, w in enumerate(weights.layer_weights):
        of = lambda names, p=f"layers.{i}.": [name for name in names if name.startswith(p)]
        inside = lambda name, p=f"layers.{i}.": name.removeprefix(p)
        if i < first and i < len(before):
            layer = before[i]
        else:
            program = _layer(tuple((inside(n), changes[n]) for n in of(changes)), tuple(map(inside, of(keep))), trace)
            layer = program(w, config, x, freqs_cis, mask, start_pos, cache.k[i], cache.v[i])
            if i < first:
                before.append(layer)
        x, k, v, metrics, seen = layer
        x = tap(f"layers.{i}", x)
        new_k.append(k)
        new_v.append(v)
        kept |= {f"layers.{i}.{name}": value for name, value in seen.items()}
        for name, value in metrics.items():
            found.setdefault(name, []).extend(value)
    return head(weights, config, x, tap), KVCache(tuple(new_k), tuple(new_v)), _stacked(found), kept


def _first_reached(name) -> float:
    """The first layer in which a change of the value of that name shows."""
    if not name.startswith("layers."):
        return 0 if name == "tok_embeddings" else math.inf
    _, layer, *inside = name.split(".")
    return int(layer) if inside else int(layer) + 1  # the stream after a layer


@lru_cache(maxsize=64)
def _layer(changes: tuple, keep: tuple, trace: bool):
    """block, compiled with changes ((what follows "layers.i.", function), ...) in it."""

    def run(w, config, x, freqs_cis, mask, start_pos, k, v):
        (found, collect), kept = collector(), {}
        tap = writer(dict(changes), keep, kept, collect if trace else no_tap)
        return *block(w, config, x, freqs_cis, mask, start_pos, k, v, tap), found, kept

    return jax.jit(run, static_argnames="config")


def writer(changes: dict, keep=(), kept=None, then=no_tap):
    """A tap for ``xfmr`` that makes the changes, puts what keep names into kept, and calls the tap then."""

    def tap(name, x):
        shown = by_query_head(x)
        if name in changes:
            new = changes[name](shown)
            found, wanted = (f"{getattr(y, 'dtype', type(y).__name__)} {list(np.shape(y))}" for y in (new, shown))
            if found != wanted:
                raise ValueError(f"the change of {name!r} must return {wanted}, as it is given, found {found}")
            shown = jnp.asarray(new)
            x = shown.reshape(x.shape)
        if name in keep:
            kept[name] = shown
        return then(name, x)

    return tap


_stacked = jax.jit(attention_metrics)


@jax.jit
def _metrics(logits, tokens):
    """Of logits [B,T,V] and the tokens [B,T] that they were computed from, row by row: less memory for large ones."""
    of_row = lambda row: trace_metrics(None, None, row[0][:-1], row[1][1:], {}, lens=False)
    return jax.lax.map(of_row, (logits, tokens))


def _of_row(model, tokens, arrays, kept):
    logits = arrays.pop("logits")
    if "entropy" not in arrays:
        return Run(tokens, logits, None, kept)
    metrics = {name: x[: len(tokens) - 1] for name, x in arrays.items()}  # attention's are of the last token too
    return Run(tokens, logits, new_trace(model, tokens[:1], tokens[1:], metrics), kept)


def _check_names(model, names):
    """Raise ValueError for a name that is no tap of the forward. Taps are those of a model of its first layer alone."""
    one = replace(model.config, n_layers=1)
    weights = model.weights._replace(layer_weights=model.weights.layer_weights[:1])
    token, cache = np.zeros((1, 1), np.int32), KVCache.new(one, 1, 1, model.dtype)
    _, _, taps = jax.eval_shape(lambda cache: xfmr_with_taps(weights, one, token, 0, cache), cache)
    there = {name.replace("layers.0", f"layers.{i}") for name in taps for i in range(model.config.n_layers)}
    for name in names:
        if name not in there:
            near = ", ".join(get_close_matches(name, sorted(there), 3)) or "layers.0, layers.0.attention.probs, ..."
            raise ValueError(f"the forward has no tap {name!r}; near it: {near}")
