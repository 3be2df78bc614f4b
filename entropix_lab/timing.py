"""What a token costs: with the cache, by computing everything again, and by the memory that has to be read."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .generation.generate import generate
from .generation.step import first, read, read_prompts, step
from .llama.model import head, linear, no_tap
from .llama.prefill import PIECE, cache_beside, cache_dtype, cache_slots
from .llama.weights import nbytes
from .sampling.plain import greedy


def seconds_per_token(
    model, positions, batch: int = 1, cached: bool = True, repeats: int = 7, trace: bool = False
) -> np.ndarray:
    """Median seconds for one more token of each row after each of positions (tokens before), without compilation.

    cached: one new token against a cache that holds the rest, as generate decodes it, with a trace or without.
    Otherwise everything is computed again, done well: as generate reads a prompt, by pieces, the output head on the
    last token only; without a trace.
    """
    seconds = partial(_of_a_step, trace=() if trace else None) if cached else _of_a_prompt
    return np.array([seconds(model, int(p), batch, repeats) for p in positions])


def _of_a_step(model, position, batch, repeats, of=np.median, trace=None):
    cache = cache_beside(model.decode_weights, model.config, batch, cache_slots(position + 1))
    cache = jax.tree.map(jnp.ones_like, cache)  # zeros would share one page of memory
    tokens, seeds = np.ones((batch, 1), np.int32), np.zeros(batch, np.uint32)
    start_pos = np.full(batch, position, np.int32)
    weights, config = model.decode_weights, model.config

    def one():
        nonlocal cache
        out, cache, *_ = step(weights, config, greedy(), tokens, start_pos, cache, (), seeds, 0, trace)
        return out

    return median_seconds(one, repeats, of)


def _of_a_prompt(model, position, batch, repeats):
    rows, seeds = np.ones((batch, position), np.int32), np.zeros(batch, np.uint32)

    def one():
        prompt, _ = read_prompts(model, rows)
        return first(model.decode_weights, model.config, greedy(), prompt, np.arange(batch), (), seeds)

    return median_seconds(one, repeats)


def parts(model, position: int, batch: int = 1, repeats: int = 15) -> dict[str, float]:
    """Seconds of one decoding step of batch rows at a position, and of what it is made of, the fastest of the repeats.

    "products": of a token of each row with the matrices of all layers, as a program of its own; "head": the final norm
    and the output matrix, likewise; "cache": what the step takes beyond one at position 0; "rest": what that one takes
    beyond products and head (norms, RoPE, attention to the token itself, the sampler, the start of each operation);
    "step": the whole.
    """
    weights, config = model.decode_weights, model.config
    x = jnp.ones((batch, 1, config.dim), model.dtype)

    of_products = median_seconds(lambda: _products(weights.layer_weights, x), repeats, np.min)
    of_output = median_seconds(lambda: _head(weights, config, x), repeats, np.min)
    start, whole = (_of_a_step(model, at, batch, repeats, np.min) for at in (0, position))
    cache, rest = max(0.0, whole - start), max(0.0, start - of_products - of_output)
    return {"products": of_products, "head": of_output, "cache": cache, "rest": rest, "step": whole}


@jax.jit
def _products(layers, x):
    for w in layers:  # every product reads the one before it, as in a step; clipped, or they overflow
        q, k, v = w.qkv(linear, x)
        x = jnp.clip(w.attention_out(linear, q) + k.sum() + v.sum(), 1, 2)
        gate, up = w.gate_up(linear, x)
        x = jnp.clip(w.down(linear, gate + up), 1, 2)
    return x


@partial(jax.jit, static_argnames="config")
def _head(weights, config, x):
    return head(weights, config, x, no_tap)


def median_seconds(run, repeats: int, of=np.median) -> float:
    """Median seconds of run() until its arrays are there; one more run before them compiles and is not counted.

    of: np.min for what is compared with a sum or is a limit, where a busy moment of the machine would mislead."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(of(times[1:]))


def programs() -> int:
    """How many programs generate has compiled in this process."""
    return sum(program._cache_size() for program in (read, first, step))


def memory_bandwidth(megabytes: int = 512, repeats: int = 9) -> float:
    """Bytes per second at which this device reads a matrix far larger than its caches, in a product with a vector."""
    matrix = jnp.ones((megabytes * 1_000_000 // 4 // 4096, 4096), jnp.float32)
    vector, product = jnp.ones(4096, jnp.float32), jax.jit(jnp.dot)
    return matrix.nbytes / median_seconds(lambda: product(matrix, vector), repeats, np.min)


def peak_operations(size: int = 2048, repeats: int = 5) -> float:
    """Operations per second of this device in a product of two square float32 matrices."""
    matrix, product = jnp.ones((size, size), jnp.float32), jax.jit(partial(jnp.matmul, precision="highest"))
    return 2 * size**3 / median_seconds(lambda: product(matrix, matrix), repeats, np.min)


def work(model, position: int, batch: int = 1, tokens: int = 1) -> tuple[float, float]:
    """(operations, bytes) of the next `tokens` tokens of each of batch rows at a position.

    Two operations to each weight of a matrix and token, and in attention to each cached key, value and query head; of
    the output matrix only once to a row. Every piece of the prompt reads all weights once, and the cache as it is then.
    """
    c, weights = model.config, model.decode_weights
    matrices = sum(x.size for w in weights.layer_weights for x in w if x.ndim == 2)
    seen = position * tokens + tokens * (tokens + 1) / 2  # slots that all tokens of a row see
    operations = 2 * batch * (matrices * tokens + c.vocab_size * c.dim + 2 * c.n_layers * c.dim * seen)
    pieces = -(-tokens // PIECE)
    once = nbytes(weights._replace(tok_embeddings=None, layer_weights=()))
    slots = seen * pieces / tokens  # that all pieces read, each those before it
    read = pieces * nbytes(weights.layer_weights) + once + slots * cache_bytes(c, 1, batch, cache_dtype(weights))
    return operations, read


def cache_bytes(config, slots: int, batch: int = 1, dtype="float32") -> int:
    """Bytes of a KV cache: keys and values of every layer, head and slot."""
    return 2 * config.n_layers * batch * slots * config.n_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def bytes_per_token(model, position: int) -> int:
    """What a single token must read: every weight once (of the embeddings one row), and the cache up to position."""
    weights = model.decode_weights
    read = nbytes(weights._replace(tok_embeddings=None))
    return read + cache_bytes(model.config, position, dtype=cache_dtype(weights))


def rate(model, batch: int, first: int = 32, new_tokens: int = 64, repeats: int = 3) -> float:
    """Tokens per second of generate for a batch of random prompts of `first` tokens, after the first token (median)."""
    prompts = np.random.default_rng(0).integers(3, model.config.vocab_size, (batch, first))
    rates = []
    for _ in range(repeats + 1):
        out = generate(model, prompts, new_tokens, stop=())
        rates.append(batch * (new_tokens - 1) / out[0].timing["decode_s"])
    return float(np.median(rates[1:]))
