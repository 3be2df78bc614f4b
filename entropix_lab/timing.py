"""What a token costs: with the cache, by computing everything again, and by the memory that has to be read."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from .generation.generate import generate
from .generation.step import SMALLEST_PROMPT, cache_slots, step
from .llama.model import KVCache
from .llama.prompts import bucket
from .llama.sharding import of_cache
from .llama.weights import nbytes
from .sampling.plain import greedy


def seconds_per_token(model, positions, batch: int = 1, cached: bool = True, repeats: int = 7) -> np.ndarray:
    """Median seconds for one more token of each row after each of positions (tokens before), without compilation.

    cached: one new token against a cache that holds the rest. Otherwise everything is computed again, done well: the
    same compiled step, prompts padded to a power of two, the output head on the last token only.
    """
    return np.array([_seconds(model, int(p), batch, cached, repeats) for p in positions])


def _seconds(model, position, batch, cached, repeats):
    T = 1 if cached else bucket(position, SMALLEST_PROMPT)
    start_pos = np.full(batch, position if cached else 0, np.int32)
    last = np.full(batch, 0 if cached else position - 1, np.int32)
    slots = cache_slots(position + 1) if cached else T
    noise = lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype)  # zeros would share one page of memory
    cache = jax.tree.map(noise, KVCache.new(model.config, batch, slots, model.dtype, of_cache(model.weights, batch)))
    tokens, seeds = np.ones((batch, T), np.int32), np.zeros(batch, np.uint32)

    def one():
        nonlocal cache
        out, cache, _ = step(model.decode_weights, model.config, greedy(), tokens, start_pos, last, cache, (), seeds, 0)
        return out

    return median_seconds(one, repeats)


def median_seconds(run, repeats: int) -> float:
    """Median seconds of run() until its arrays are there; one more run before them compiles and is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def programs() -> int:
    """How many programs generate has compiled in this process."""
    return step._cache_size()


def memory_bandwidth(megabytes: int = 512, repeats: int = 9) -> float:
    """Bytes per second at which this device reads a matrix far larger than its caches, in a product with a vector."""
    matrix = jnp.ones((megabytes * 1_000_000 // 4 // 4096, 4096), jnp.float32)
    vector, product = jnp.ones(4096, jnp.float32), jax.jit(jnp.dot)
    return matrix.nbytes / median_seconds(lambda: product(matrix, vector), repeats)


def cache_bytes(config, slots: int, batch: int = 1, dtype="float32") -> int:
    """Bytes of a KV cache: keys and values of every layer, head and slot."""
    return 2 * config.n_layers * batch * slots * config.n_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def bytes_per_token(model, position: int) -> int:
    """What a single token must read: every weight once (of the embeddings one row), and the cache up to position."""
    weights = model.decode_weights
    read = nbytes(weights._replace(tok_embeddings=None))
    return read + cache_bytes(model.config, position, dtype=model.dtype)


def rate(model, batch: int, first: int = 32, new_tokens: int = 64, repeats: int = 3) -> float:
    """Tokens per second of generate for a batch of random prompts of `first` tokens, after the first token (median)."""
    prompts = np.random.default_rng(0).integers(3, model.config.vocab_size, (batch, first))
    rates = []
    for _ in range(repeats + 1):
        out = generate(model, prompts, new_tokens, stop=())
        rates.append(batch * (new_tokens - 1) / out[0].timing["decode_s"])
    return float(np.median(rates[1:]))
