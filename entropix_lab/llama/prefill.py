"""Prompts through the KV cache, piece by piece, and the sizes for which programs are compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .model import KVCache
from .sharding import of_cache

PIECE = 256  # tokens that are read at once
SMALLEST_PROMPT, SMALLEST_CACHE = 16, 128


def prefill(run, weights, config, rows):
    """Read rows, token ids [T] each, through an empty cache: (what run gave for each piece, the cache).

    run(tokens [B,T], start_pos [B], last [B], cache) -> (out, cache) reads one piece of each row; last is the index of
    the row's last token in it. T is PIECE, or for short rows the power of two that holds them. The last piece of every
    row ends with the row: it begins within the piece before it where the length asks for that, and a row shorter than
    others reads its last piece several times. The cache has the slots that the pieces so far need, so that memory for
    scores grows with the length, not with its square. Padding beyond a row's end is overwritten before it is read.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    T = min(bucket(lengths.max(), SMALLEST_PROMPT), PIECE)
    last = np.minimum(lengths, T) - 1
    padded = np.zeros((len(rows), max(T, lengths.max())), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    cache, outs = cache_beside(weights, config, len(rows), max(T, SMALLEST_CACHE)), []
    for first in range(0, lengths.max(), T):
        start_pos = np.minimum(first, np.maximum(lengths - T, 0)).astype(np.int32)
        cache = resized(cache, bucket(start_pos.max() + T, SMALLEST_CACHE))
        tokens = np.take_along_axis(padded, start_pos[:, None] + np.arange(T), 1)
        out, cache = run(tokens, start_pos, last, cache)
        outs.append(out)
    return outs, cache


def cache_beside(weights, config, batch: int, slots: int) -> KVCache:
    """An empty cache on the devices of these weights, in the dtype in which its products are computed."""
    return KVCache.new(config, batch, slots, cache_dtype(weights), of_cache(weights, batch))


def cache_dtype(weights):
    """That of the stream, or of the matrices where they are wider: on a CPU generation has those of a bfloat16
    model float32, and products over a bfloat16 cache take twice as long there."""
    # not weights.output.dtype: outside of jit that view is a copy of the matrix, which every call would pay for
    return jnp.result_type(*jax.tree.leaves((weights.tok_embeddings, weights.layer_weights[0])))


def bucket(n, least) -> int:
    """The power of two from least on that holds n: sizes are padded to it, so that few programs are compiled."""
    return max(least, 1 << (int(n) - 1).bit_length())


def cache_slots(n) -> int:
    """Slots of a cache for n tokens, by eighths of a power of two: a token reads all slots, and a size is a program."""
    part = max(SMALLEST_CACHE, bucket(n, SMALLEST_CACHE) // 8)
    return -(-int(n) // part) * part


def resized(cache, slots: int):
    """The cache with more slots, or without its last ones."""
    return cache if cache.max_seq_len == slots else _resized(cache, slots)


@partial(jax.jit, static_argnames="slots")
def _resized(cache, slots):
    more = (0, max(0, slots - cache.max_seq_len))
    keys = lambda x: jnp.pad(x[..., :slots], [(0, 0)] * 3 + [more])
    values = lambda x: jnp.pad(x[:, :, :slots], [(0, 0)] * 2 + [more, (0, 0)])
    return KVCache(tuple(map(keys, cache.k)), tuple(map(values, cache.v)))
