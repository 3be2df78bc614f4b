from dataclasses import replace

import numpy as np
import pytest

import entropix_lab as lab

SHARES = ("sink", "previous token", "same token", "induction")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return lab.load_model(tiny_checkpoint(tied=False))


def test_random_text_twice(tiny, demo):
    rows = lab.heads.repeated(tiny, length=20, rows=3, seed=1)
    assert rows.shape == (3, 40) and (rows[:, :20] == rows[:, 20:]).all()
    assert all(len(set(row)) == 20 for row in rows.tolist()) and len(np.unique(rows, axis=0)) == 3
    special = set(demo.tokenizer.special_tokens.values())
    assert not special & set(lab.heads.repeated(demo, length=1000).ravel().tolist())
    with pytest.raises(ValueError, match="length must be from 2 to 128, the ordinary tokens of this model, found 129"):
        lab.heads.repeated(tiny, length=129)


def test_shares_are_of_the_probabilities(tiny):
    length = 12
    shares = lab.heads.kinds(tiny, length, rows=2, seed=3)
    tokens = lab.heads.repeated(tiny, length, rows=2, seed=3)
    cache = lab.KVCache.new(tiny.config, 2, 2 * length)
    taps = lab.xfmr_with_taps(tiny.weights, tiny.config, tokens, 0, cache)[2]
    assert tuple(shares) == SHARES == tuple(lab.heads.KINDS)
    for layer in range(3):
        p = np.asarray(taps[f"layers.{layer}.attention.probs"])  # [B,N,T,S]
        rows = [p[:, :, t] for t in range(length + 1, 2 * length)]
        for kind, back in zip(SHARES, (None, 1, length, length - 1), strict=True):
            of = [x[..., 0 if back is None else length + 1 + i - back] for i, x in enumerate(rows)]
            np.testing.assert_allclose(shares[kind][layer], np.mean(of, (0, 1)), atol=1e-6, err_msg=kind)


def test_heads_that_were_built_are_found(tiny):
    """Keys that are the queries of the same token: a head that looks at it where it came before."""
    N, K, H, D = tiny.config.n_heads, tiny.config.n_kv_heads, tiny.config.head_dim, tiny.config.dim
    first, *rest = tiny.weights.layer_weights
    rng = np.random.default_rng(0)
    slow = np.zeros((H, D), np.float32)  # RoPE turns its last pairs least
    slow[-2:] = 12 * rng.standard_normal((2, D)) / np.sqrt(D)
    w = first._replace(wq=first.wq.at[:H].set(slow), wk=first.wk.at[:H].set(slow))
    built = replace(tiny, weights=tiny.weights._replace(layer_weights=(w, *rest)))
    assert N // K == 2
    before, after = (lab.heads.kinds(m, 12)["same token"][0, 0] for m in (tiny, built))
    assert after > 1.5 * before


def test_strongest():
    shares = {"sink": np.array([[0.1, 0.9], [0.5, 0.2]])}
    assert lab.heads.strongest(shares, 2) == {"sink": [(0, 1, 0.9), (1, 0, 0.5)]}
