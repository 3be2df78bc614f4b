from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

import entropix_lab as lab

SHARES = ("sink", "previous token", "same token", "induction")


def test_random_text_twice(tiny32, demo):
    rows = lab.heads.repeated(tiny32, length=20, rows=3, seed=1)
    assert rows.shape == (3, 40) and (rows[:, :20] == rows[:, 20:]).all()
    assert all(len(set(row)) == 20 for row in rows.tolist()) and len(np.unique(rows, axis=0)) == 3
    special = set(demo.tokenizer.special_tokens.values())
    assert not special & set(lab.heads.repeated(demo, length=1000).ravel().tolist())
    with pytest.raises(ValueError, match="length must be from 2 to 128, the ordinary tokens of this model, found 129"):
        lab.heads.repeated(tiny32, length=129)


def test_shares_are_of_the_probabilities(tiny32):
    length = 12
    shares = lab.heads.kinds(tiny32, length, rows=2, seed=3)
    tokens = lab.heads.repeated(tiny32, length, rows=2, seed=3)
    cache = lab.KVCache.new(tiny32.config, 2, 2 * length)
    taps = lab.xfmr_with_taps(tiny32.weights, tiny32.config, tokens, 0, cache)[2]
    assert tuple(shares) == SHARES == tuple(lab.heads.KINDS)
    for layer in range(3):
        p = np.asarray(taps[f"layers.{layer}.attention.probs"])  # [B,N,T,S]
        rows = [p[:, :, t] for t in range(length + 1, 2 * length)]
        for kind, back in zip(SHARES, (None, 1, length, length - 1), strict=True):
            of = [x[..., 0 if back is None else length + 1 + i - back] for i, x in enumerate(rows)]
            np.testing.assert_allclose(shares[kind][layer], np.mean(of, (0, 1)), atol=1e-6, err_msg=kind)


def test_heads_that_were_built_are_found(tiny32):
    """Keys that are the queries of the same token: a head that looks at it where it came before."""
    N, K, H, D = tiny32.config.n_heads, tiny32.config.n_kv_heads, tiny32.config.head_dim, tiny32.config.dim
    first, *rest = tiny32.weights.layer_weights
    rng = np.random.default_rng(0)
    slow = np.zeros((H, D), np.float32)  # RoPE turns its last pairs least
    slow[-2:] = 12 * rng.standard_normal((2, D)) / np.sqrt(D)
    w = first._replace(wq=first.wq.at[:H].set(slow), wk=first.wk.at[:H].set(slow))
    built = replace(tiny32, weights=tiny32.weights._replace(layer_weights=(w, *rest)))
    assert N // K == 2
    before, after = (lab.heads.kinds(m, 12)["same token"][0, 0] for m in (tiny32, built))
    assert after > 1.5 * before


def test_strongest():
    shares = {"sink": np.array([[0.1, 0.9], [0.5, 0.2]])}
    assert lab.heads.strongest(shares, 2) == {"sink": [(0, 1, 0.9), (1, 0, 0.5)]}


def test_tiles_are_the_heads():
    probs = np.random.default_rng(0).random((3, 2, 5, 8))
    large, sheet = lab.plots.attention_tiles(probs, list("abcde"), 2, 1, {(2, 1): "sink"})
    shown = sheet.images[0].get_array()
    assert shown.shape == (2 * 7, 3 * 7) and large.get_title("left") == "Layer 2, head 1: sink"
    past = np.tri(5, dtype=bool)
    np.testing.assert_array_equal(np.asarray(shown[7:12, 14:19])[past], probs[2, 1, :, :5][past])
    np.testing.assert_array_equal(np.asarray(large.images[0].get_array())[past], probs[2, 1, :, :5][past])
    plt.close("all")


def test_lens_in_words(tiny32):
    trace = lab.trace_text(tiny32, [5, 17, 3, 99], lens=True)
    ax = lab.plots.lens_words(trace)
    words = [text.get_text() for text in ax.texts]
    assert words == [f"<{trace.lens_tokens[t, layer, 0]}>" for layer in (0, 2) for t in range(3)]
    assert (ax.images[0].get_array() == trace.lens_rank[:, [0, 2]].T + 1).all()
    with pytest.raises(ValueError, match="no logit lens"):
        lab.plots.lens_words(lab.trace_text(tiny32, [5, 17, 3, 99]))
    plt.close("all")
