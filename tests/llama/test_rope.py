import dataclasses

import numpy as np
import pytest
import torch
from llama_models.llama3 import model as meta

import entropix_lab as lab
from entropix_lab.checkpoints.write import TINY
from entropix_lab.llama import rope
from entropix_lab.proof import truth


def config(**change):
    return lab.LlamaConfig.from_params(TINY | change)


def test_rotation_is_complex_multiplication():
    cos, sin = rope.precompute_freqs_cis(config(), 7)
    x = np.random.default_rng(0).standard_normal((2, 7, 3, 16)).astype(np.float32)
    got = np.asarray(rope.apply_rotary_emb(x, cos[None].repeat(2, 0), sin[None].repeat(2, 0)))
    want = (x[..., ::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)[None, :, None]
    assert np.allclose(got[..., ::2], want.real, atol=1e-6) and np.allclose(got[..., 1::2], want.imag, atol=1e-6)


def test_angles_by_hand():
    cos, sin = rope.precompute_freqs_cis(config(dim=16, rope_theta=10000.0, use_scaled_rope=False), 4, np.float64)
    angles = 3 * np.array([1.0, 10000 ** (-2 / 4)])  # head_dim 4: two pairs
    assert np.allclose(cos[3], np.cos(angles)) and np.allclose(sin[3], np.sin(angles))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_table_equals_metas(scaled, head_dim):
    c = config(dim=head_dim * 4, use_scaled_rope=scaled)
    cos, sin = rope.precompute_freqs_cis(c, 5000)
    want = meta.precompute_freqs_cis(head_dim, 5000, c.rope_theta, scaled).numpy()
    # Libraries' float32 powers are not rounded alike. Each operation on the way to an angle (power, division, product,
    # and as many again where it is scaled) may be off by one unit, relative to the angle; the cosine by one of its own.
    cos1, sin1 = (table[1] for table in rope.precompute_freqs_cis(c, 2, np.float64))
    angles = np.arange(5000)[:, None] * np.arctan2(sin1, cos1)
    limit = np.finfo(np.float32).eps * ((6 if scaled else 3) * angles + 1)
    assert np.all(np.abs(cos - want.real) <= limit) and np.all(np.abs(sin - want.imag) <= limit)
    assert cos.dtype == np.float32


def test_scaling_equals_metas_and_the_factor_is_used():
    freqs = (500000.0 ** -(np.arange(0, 64, 2) / 64)).astype(np.float32)
    want = meta.apply_scaling(torch.tensor(freqs)).numpy()
    np.testing.assert_allclose(rope.apply_scaling(freqs), want, rtol=2e-7)
    assert np.allclose(rope.apply_scaling(freqs, 32.0)[-1] * 32, freqs[-1])
    assert rope.apply_scaling(freqs, 32.0)[0] == freqs[0]


def test_all_four_numbers_are_used_as_in_the_truth():
    numbers = dict(rope_scaling_factor=32.0, rope_low_freq_factor=2.0, rope_high_freq_factor=5.0)
    c = lab.LlamaConfig(**TINY | {"dim": 256}, **numbers, rope_old_context_len=1000)
    cos, sin = rope.precompute_freqs_cis(c, 300, np.float64)
    want = truth.angles(c, 300)
    assert np.allclose(cos, np.cos(want)) and np.allclose(sin, np.sin(want))
    for name in (*numbers, "rope_old_context_len"):
        metas = dataclasses.replace(c, **{name: getattr(lab.LlamaConfig(**TINY), name)})
        assert not np.allclose(rope.precompute_freqs_cis(metas, 300, np.float64)[1], sin), name
