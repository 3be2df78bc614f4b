from types import SimpleNamespace

import jax
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab import timing
from entropix_lab.generation import step


@pytest.fixture(scope="module")
def tied(tiny_checkpoint):
    """Its embeddings are its output matrix, which a token reads whole."""
    return lab.load_model(tiny_checkpoint())


def test_cache_bytes_are_those_of_a_cache(tied):
    cache = lab.KVCache.new(tied.config, 3, 40)
    assert timing.cache_bytes(tied.config, 40, 3) == sum(x.nbytes for x in jax.tree.leaves(cache))
    assert timing.cache_bytes(tied.config, 40, 3, "bfloat16") * 2 == timing.cache_bytes(tied.config, 40, 3)


def test_a_token_reads_every_weight_and_the_cache_so_far(tied):
    read = sum(x.nbytes for name, x in lab.weights.by_name(tied.weights).items() if "tok_embeddings" not in name)
    assert timing.bytes_per_token(tied, 7) == read + timing.cache_bytes(tied.config, 7)
    # the token's own keys and values are read too
    assert timing.work(tied, 7)[1] == read + timing.cache_bytes(tied.config, 8)


def test_operations_are_those_of_the_products(tied):
    """Two to a weight and row, and four to a slot, layer and channel that a token attends to."""
    c, matrices = tied.config, [x for x in jax.tree.leaves(tied.weights._replace(tok_embeddings=None)) if x.ndim == 2]
    alone = 2 * sum(x.size for x in matrices) + 4 * c.n_layers * c.dim * 8
    assert timing.work(tied, 7)[0] == alone and timing.work(tied, 7, batch=3)[0] == 3 * alone
    in_turn = sum(timing.work(tied, p)[0] for p in range(300))
    heads = 299 * 2 * tied.weights.output.size  # a prompt has the output head once
    assert timing.work(tied, 0, tokens=300)[0] == in_turn - heads


@pytest.mark.parametrize(
    ("measured", "cache", "rest"),
    [
        ((5.0, 2.0, 8.0, 11.0), 3.0, 1.0),
        ((5.0, 2.0, 6.5, 6.0), 0.0, 0.0),  # noise alone makes a difference negative
    ],
)
def test_the_parts_of_a_step(tied, monkeypatch, measured, cache, rest):
    """What is not timed by itself is what is left. measured: products, head, a step at 0 and one at 20."""
    seconds = iter(measured)

    def scripted(run, repeats, of):
        assert np.isfinite(np.asarray(jax.tree.leaves(run())[0], float)).all() and (repeats, of) == (2, np.min)
        return next(seconds)

    monkeypatch.setattr(timing, "median_seconds", scripted)
    products, head, _, step = measured
    want = {"products": products, "head": head, "cache": cache, "rest": rest, "step": step}
    assert timing.parts(tied, 20, repeats=2) == want and not list(seconds)


def test_the_fastest_run_counts_and_the_first_does_not(monkeypatch):
    clock = iter([0, 0.5, 10, 13, 20, 21, 30, 32])
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert timing.median_seconds(lambda: None, 3, np.min) == 1


def test_peak_operations():
    assert timing.peak_operations(64, repeats=2) > 1e6


def test_what_is_timed_is_one_token(tied, monkeypatch):
    """With the cache a step against the slots that generation would have; without it all tokens, read by pieces."""
    seen, traces = [], []
    for name in ("read", "step"):
        program = getattr(step, name)

        def spy(weights, config, *rest, name=name, program=program):
            cache = next(x for x in rest if isinstance(x, lab.KVCache))
            tokens, start_pos = [x for x in rest if isinstance(x, np.ndarray)][:2]
            seen.append((tokens.shape, cache.max_seq_len, int(start_pos[0])))
            traces.extend(rest[-1:] if name == "step" else ())
            return program(weights, config, *rest)

        monkeypatch.setattr(step, name, spy)
        monkeypatch.setattr(timing, name, spy)
    seconds = [timing.seconds_per_token(tied, [5, 300], 2, cached, repeats=2) for cached in (True, False)]
    assert np.shape(seconds) == (2, 2) and np.min(seconds) > 0
    once = [((2, 1), 128, 5), ((2, 1), 384, 300), ((2, 16), 128, 0), ((2, 256), 256, 0), ((2, 256), 512, 44)]
    assert sorted(set(seen), key=seen.index) == once and len(seen) == 3 * len(once)
    assert timing.seconds_per_token(tied, [5], repeats=2, trace=True)[0] > 0 and traces == 6 * [None] + 3 * [()]


def test_rates_are_positive(tied):
    assert timing.memory_bandwidth(megabytes=4, repeats=2) > 1e6
    assert np.isfinite(timing.rate(tied, 2, first=4, new_tokens=4, repeats=1))
