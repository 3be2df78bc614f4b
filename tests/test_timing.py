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


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_timed_is_one_step(tiny, monkeypatch, cached):
    """With the cache a step reads one token against the slots that generation would have; without it all tokens."""
    seen, real = [], step.step

    def spy(weights, config, sampler, tokens, start_pos, last, cache, *rest):
        seen.append((tokens.shape, cache.max_seq_len, int(start_pos[0]), int(last[0])))
        return real(weights, config, sampler, tokens, start_pos, last, cache, *rest)

    monkeypatch.setattr(timing, "step", spy)
    seconds = timing.seconds_per_token(tiny, [5, 130], batch=2, cached=cached, repeats=2)
    assert seconds.shape == (2,) and (seconds > 0).all() and len(seen) == 2 * 3
    expected = (
        [((2, 1), 128, 5, 0), ((2, 1), 192, 130, 0)] if cached else [((2, 16), 16, 0, 4), ((2, 256), 256, 0, 129)]
    )
    assert sorted(set(seen), key=seen.index) == expected


def test_rates_are_positive(tiny):
    assert timing.memory_bandwidth(megabytes=4, repeats=2) > 1e6
    assert np.isfinite(timing.rate(tiny, 2, first=4, new_tokens=4, repeats=1))
