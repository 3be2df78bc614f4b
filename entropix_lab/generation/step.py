"""The one compiled step of generation: prefill and decode, and the sizes for which programs are compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler import EXACT
from ..entropy.metrics import attention_metrics, collector, entropy_varentropy, trace_metrics
from ..llama.model import KVCache, head, no_tap, transformer
from ..llama.prompts import bucket
from ..llama.sharding import of_cache
from ..sampling.draw import likeliest

# Two programs that are both right differ by about this much of the largest logit: nearer candidates are tied.
ROUNDING = {"float32": 1e-5, "bfloat16": 4e-2, "float64": 1e-7}  # of float64, logits are kept in float32
SMALLEST_PROMPT, SMALLEST_CACHE = 16, 128


@partial(jax.jit, static_argnames=("config", "trace"), donate_argnames="cache", compiler_options=EXACT)
def step(weights, config, sampler, tokens, start_pos, last, cache, state, seeds, count, trace=None, rows=None):
    """tokens [B,T] from start_pos [B] on; the next token follows the one at index last [B] of each row.

    Prefill and decode are this one function. Where rows share a prompt, tokens [U,T], start_pos and last [U] hold each
    prompt once, and rows [B] says whose each row is. trace: None, or a tuple of what it has beside its metrics, "lens"
    and "attention". Returns (what the host wants to know of each row, cache, state).
    """
    needs = getattr(sampler, "needs", ())
    traced = trace is not None
    found, tap = collector(last, traced and "attention" in trace) if traced or needs else ({}, no_tap)
    slots = cache if rows is None else jax.tree.map(lambda c: c[: len(tokens)], cache)
    x, cache = transformer(weights, config, tokens, start_pos, slots, tap)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)
    if rows is not None:
        x, cache, found = jax.tree.map(lambda of_prompt: of_prompt[rows], (x, cache, found))
    logits = head(weights, config, x, no_tap)[:, 0]
    logits = logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), count))(seeds)
    entropy, varentropy = entropy_varentropy(logits)
    attention = attention_metrics(found)
    needed = {name: attention[name][:, 0] for name in needs}
    token, state, info = sampler(logits, {"entropy": entropy, "varentropy": varentropy} | needed, state, keys)
    best, _ = likeliest(logits, 2)
    out = {
        "token": token,
        "logprob": jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0],
        "margin": best[:, 0] - best[:, 1],
        "tie": best[:, 0] - best[:, 1] <= ROUNDING[str(x.dtype)] * jnp.abs(logits).max(-1),
    }
    out |= {f"info.{name}": x for name, x in info.items()}
    if traced:
        metrics = trace_metrics(weights, config, logits[:, None], token[:, None], found, "lens" in trace)
        out |= {f"trace.{name}": x[:, 0] for name, x in metrics.items()}
    return out, cache, state


def steps(model, rows, lengths, max_new_tokens, sampler, seeds, max_seq_len, trace=None):
    """Yield the outputs of each step, still on the device: the next step is under way before the host reads them.

    Prompts are padded to a power of two, and a full cache grows to the next of few sizes: few programs are compiled,
    and early tokens do not pay for slots that nothing uses yet. What padding writes lies beyond a row's
    length, where nothing reads it before it is overwritten. A prompt that several rows share is read once.
    """
    weights, config = model.decode_weights, model.config
    B, T = len(rows), min(bucket(lengths.max(), SMALLEST_PROMPT), max_seq_len)
    prompts = {}
    shared = np.array([prompts.setdefault(tuple(row), len(prompts)) for row in rows], np.int32)
    U = min(B, bucket(len(prompts), 1))
    read, shared = (list(prompts), shared) if U < B else (rows, None)
    tokens, last = np.zeros((U, T), np.int32), np.zeros(U, np.int32)
    for i, row in enumerate(read):
        tokens[i, : len(row)], last[i] = row, len(row) - 1
    slots = lambda n: min(cache_slots(n), max_seq_len)
    cache = KVCache.new(config, B, slots(max(T, lengths.max() + 1)), model.dtype, of_cache(weights, B))
    state, seeds = sampler.init(B), np.array(seeds, np.uint32)
    out, cache, state = step(
        weights, config, sampler, tokens, np.zeros(U, np.int32), last, cache, state, seeds, 0, trace, shared
    )
    for count in range(1, max_new_tokens + 1):
        position = lengths + np.int32(count - 1)
        if count == max_new_tokens or position.min() >= max_seq_len:
            break
        if position.max() >= cache.max_seq_len:
            cache = grow(cache, slots(position.max() + 1))
        token, last = out["token"][:, None], np.zeros(B, np.int32)
        ahead, cache, state = step(weights, config, sampler, token, position, last, cache, state, seeds, count, trace)
        yield out
        out = ahead
    yield out


def cache_slots(n) -> int:
    """How many slots a cache for n tokens has: a power of two or three quarters of one, so that few are never read."""
    power = bucket(n, SMALLEST_CACHE)
    return power * 3 // 4 if SMALLEST_CACHE < power and n <= power * 3 // 4 else power


def grow(cache, max_seq_len):
    more = max(0, max_seq_len - cache.max_seq_len)
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))), cache)
