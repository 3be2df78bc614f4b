"""Three compiled programs: one reads a piece of the prompts, one chooses their first tokens, one decodes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler import EXACT
from ..entropy.metrics import attention_metrics, collector, entropy_varentropy, trace_metrics
from ..llama.model import head, no_tap, transformer
from ..llama.prefill import bucket, cache_slots, prefill, resized
from ..llama.sharding import everywhere, of_cache
from ..sampling.draw import likeliest

# Two programs that are both right differ by about this much of the largest logit: nearer candidates are tied.
ROUNDING = {"float32": 1e-5, "bfloat16": 4e-2, "float64": 1e-7}  # of float64, logits are kept in float32


@partial(jax.jit, static_argnames=("config", "watch"), donate_argnames="cache", compiler_options=EXACT)
def read(weights, config, tokens, start_pos, last, cache, watch=None):
    """Tokens [B,T] from start_pos [B] on: ((the stream [B,1,D] at the one at index last [B] of each row, what a
    collector found there), cache). watch: as `watched` says. No sampler has a part in it: one program serves all."""
    found, tap = ({}, no_tap) if watch is None else collector(last, *watch)
    x, cache = transformer(weights, config, tokens, start_pos, cache, tap)
    return (jnp.take_along_axis(x, last[:, None, None], axis=1), found), cache


@partial(jax.jit, static_argnames=("config", "trace"), compiler_options=EXACT)
def first(weights, config, sampler, read_out, of_row, state, seeds, trace=None):
    """The first token of each row, from what `read` gave of its prompt, of_row [B]: (out, state), as `step`."""
    x, found = jax.tree.map(lambda of_prompt: of_prompt[of_row], read_out)
    return _choose(weights, config, sampler, x, found, state, seeds, 0, trace)


@partial(jax.jit, static_argnames=("config", "trace"), donate_argnames="cache", compiler_options=EXACT)
def step(weights, config, sampler, tokens, start_pos, cache, state, seeds, count, trace=None):
    """Tokens [B,1] at start_pos [B], and the next one: (what the host wants to know of each row, cache, state, and
    start_pos and count of the step after it).

    trace: None, or a tuple of what it has beside its metrics, "lens" and "attention"."""
    watch = watched(sampler, trace)
    found, tap = ({}, no_tap) if watch is None else collector(None, *watch)
    x, cache = transformer(weights, config, tokens, start_pos, cache, tap)
    out, state = _choose(weights, config, sampler, x, found, state, seeds, count, trace)
    return out, cache, state, start_pos + 1, count + 1


def watched(sampler, trace) -> tuple[bool] | None:
    """None where nobody asks for what a collector finds, otherwise whether its largest sources are asked for."""
    asked = trace is not None or getattr(sampler, "needs", ())
    return ("attention" in (trace or ()),) if asked else None


def _choose(weights, config, sampler, x, found, state, seeds, count, trace):
    logits = head(weights, config, x, no_tap)[:, 0].astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), count))(seeds)
    entropy, varentropy = entropy_varentropy(logits)
    attention = attention_metrics(found)
    needed = {name: attention[name][:, 0] for name in getattr(sampler, "needs", ())}
    token, state, info = sampler(logits, {"entropy": entropy, "varentropy": varentropy} | needed, state, keys)
    best, _ = likeliest(logits, 2)
    out = {
        "token": token,
        "logprob": jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0],
        "margin": best[:, 0] - best[:, 1],
        "tie": best[:, 0] - best[:, 1] <= ROUNDING[str(x.dtype)] * jnp.abs(logits).max(-1),
    }
    out |= {f"info.{name}": x for name, x in info.items()}
    if trace is not None:
        metrics = trace_metrics(weights, config, logits[:, None], token[:, None], found, "lens" in trace)
        out |= {f"trace.{name}": x[:, 0] for name, x in metrics.items()}
    return out, state


def read_prompts(model, rows, watch=None):
    """(What `read` gives at the last token of each row, the cache with the rows in it and room for one more token)."""
    weights, config = model.decode_weights, model.config
    outs, cache = prefill(lambda *piece: read(weights, config, *piece, watch), weights, config, rows)
    return outs[-1], resized(cache, cache_slots(max(map(len, rows)) + 1))


def steps(model, rows, lengths, max_new_tokens, sampler, seeds, max_seq_len, trace=None):
    """Yield the outputs of each step, still on the device: the next step is under way before the host reads them.

    A full cache grows, so that early tokens do not pay for slots of later ones. A prompt of several rows is read once.
    """
    weights, config, B = model.decode_weights, model.config, len(rows)
    prompts = {}
    of_row = np.array([prompts.setdefault(tuple(row), len(prompts)) for row in rows], np.int32)
    shared = (U := bucket(len(prompts), 1)) < B
    rows = [*prompts, *[rows[0]] * (U - len(prompts))] if shared else rows
    of_row = of_row if shared else np.arange(B, dtype=np.int32)
    prompt, cache = read_prompts(model, rows, watched(sampler, trace))
    cache = taken(cache, of_row, of_cache(weights, B)) if shared else cache
    given = sampler, np.array(seeds, np.uint32), lengths, np.int32(1)
    sampler, seeds, position, count = _placed(given, everywhere(weights))  # a step then asks nothing of the host
    out, state = first(weights, config, sampler, prompt, of_row, sampler.init(B), seeds, trace)
    for n in range(min(max_new_tokens - 1, max_seq_len - int(lengths.min()))):
        if (needed := lengths.max() + n + 1) > cache.max_seq_len:
            cache = resized(cache, cache_slots(needed))
        ahead, cache, state, position, count = step(
            weights, config, sampler, out["token"][:, None], position, cache, state, seeds, count, trace
        )
        yield out
        out = ahead
    yield out


@partial(jax.jit, static_argnames="where")
def _placed(tree, where):
    """A tree of numbers as arrays there. Not device_put, which refuses a plain float where there are processes."""
    return tree if where is None else jax.lax.with_sharding_constraint(tree, where)


@partial(jax.jit, static_argnames="where")
def taken(tree, rows, where=None):
    """Copies of some rows of every array; where: a sharding for all of them."""
    return _placed(jax.tree.map(lambda x: x[rows], tree), where)
