import jax
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab import timing
from entropix_lab.generation import step


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return lab.load_model(tiny_checkpoint())


def test_cache_bytes_are_those_of_a_cache(tiny):
    cache = lab.KVCache.new(tiny.config, 3, 40)
    assert timing.cache_bytes(tiny.config, 40, 3) == sum(x.nbytes for x in jax.tree.leaves(cache))
    assert timing.cache_bytes(tiny.config, 40, 3, "bfloat16") * 2 == timing.cache_bytes(tiny.config, 40, 3)


def test_a_token_reads_every_weight_and_the_cache_so_far(tiny):
    read = sum(x.nbytes for name, x in lab.weights.by_name(tiny.weights).items() if "tok_embeddings" not in name)
    assert timing.bytes_per_token(tiny, 7) == read + timing.cache_bytes(tiny.config, 7)
    # the token's own keys and values are read too
    assert timing.work(tiny, 7)[1] == read + timing.cache_bytes(tiny.config, 8)


def test_operations_are_those_of_the_products(tiny):
    """Two to a weight and row, and four to a slot, layer and channel that a token attends to."""
    c, matrices = tiny.config, [x for x in jax.tree.leaves(tiny.weights._replace(tok_embeddings=None)) if x.ndim == 2]
    alone = 2 * sum(x.size for x in matrices) + 4 * c.n_layers * c.dim * 8
    assert timing.work(tiny, 7)[0] == alone and timing.work(tiny, 7, batch=3)[0] == 3 * alone
    in_turn = sum(timing.work(tiny, p)[0] for p in range(300))
    heads = 299 * 2 * tiny.weights.output.size  # a prompt has the output head once
    assert timing.work(tiny, 0, tokens=300)[0] == in_turn - heads


def test_the_parts_of_a_step(tiny):
    found = timing.parts(tiny, 20, repeats=2)
    assert list(found) == ["products", "head", "cache", "rest", "step"] and min(found.values()) >= 0
    assert timing.peak_operations(64, repeats=2) > 1e6


def test_what_is_timed_is_one_token(tiny, monkeypatch):
    """With the cache a step against the slots that generation would have; without it all tokens, read by pieces."""
    seen = []
    for name in ("read", "step"):
        program = getattr(step, name)

        def spy(weights, config, *rest, program=program):
            cache = next(x for x in rest if isinstance(x, lab.KVCache))
            tokens, start_pos = [x for x in rest if isinstance(x, np.ndarray)][:2]
            seen.append((tokens.shape, cache.max_seq_len, int(start_pos[0])))
            return program(weights, config, *rest)

        monkeypatch.setattr(step, name, spy)
        monkeypatch.setattr(timing, name, spy)
    seconds = [timing.seconds_per_token(tiny, [5, 300], 2, cached, repeats=2) for cached in (True, False)]
    assert np.shape(seconds) == (2, 2) and np.min(seconds) > 0
    once = [((2, 1), 128, 5), ((2, 1), 384, 300), ((2, 16), 128, 0), ((2, 256), 256, 0), ((2, 256), 512, 44)]
    assert sorted(set(seen), key=seen.index) == once and len(seen) == 3 * len(once)


def test_rates_are_positive(tiny):
    assert timing.memory_bandwidth(megabytes=4, repeats=2) > 1e6
    assert np.isfinite(timing.rate(tiny, 2, first=4, new_tokens=4, repeats=1))
