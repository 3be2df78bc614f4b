import random

import pytest

import entropix_lab as lab
from entropix_lab.checkpoints.safetensors import ffn_fields
from entropix_lab.checkpoints.write import TINY


def test_fields_and_widths_of_llama_3_2():
    config = lab.LlamaConfig.from_params(
        dict(dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, vocab_size=128256, ffn_dim_multiplier=1.5)
        | dict(multiple_of=256, norm_eps=1e-5, rope_theta=500000.0, use_scaled_rope=True)
    )
    assert (config.head_dim, config.ffn_dim, config.rope_scaling_factor) == (64, 8192, 8)


def test_any_width_can_be_said():
    """By Meta's own rounding rule, written once more."""
    draw = random.Random(0)
    known = [(2048, 8192), (3072, 8192), (4096, 14336), (8192, 28672), (16384, 53248), (576, 1536), (2048, 5632)]
    for dim, width in known + [(draw.randrange(2, 20000), draw.randrange(1, 70000)) for _ in range(5000)]:
        multiple_of, multiplier = ffn_fields(dim, width)
        hidden = int(2 * (4 * dim) / 3)
        if multiplier is not None:
            hidden = int(multiplier * hidden)
        assert multiple_of * ((hidden + multiple_of - 1) // multiple_of) == width
    assert ffn_fields(2048, 8192) == (256, 1.5)


def test_rope_unlike_metas_code_is_named():
    config = lab.LlamaConfig(**TINY, rope_scaling_factor=32.0, rope_old_context_len=4096)
    found = "rope_scaling_factor is 32.0 (8.0 in Meta's code), rope_old_context_len is 4096 (8192 in Meta's code)"
    assert config.unlike_metas_code == found
    assert config.in_metas_code == lab.LlamaConfig(**TINY) and config.in_metas_code.unlike_metas_code == ""
    assert config.params() == TINY
    assert lab.LlamaConfig(**TINY | {"use_scaled_rope": False}, rope_scaling_factor=32.0).unlike_metas_code == ""
    with pytest.raises(lab.CheckpointError, match="must be below rope_high_freq_factor, found 4.0 and 4.0"):
        lab.LlamaConfig(**TINY, rope_low_freq_factor=4.0)


def test_n_kv_heads_defaults_to_n_heads():
    params = {k: v for k, v in TINY.items() if k != "n_kv_heads"}
    assert lab.LlamaConfig.from_params(params).n_kv_heads == TINY["n_heads"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_args": {}}, r"unknown fields \['quantization_args'\]"),
        ({"rope_scaling_factor": 32.0}, r"unknown fields \['rope_scaling_factor'\]"),
        ({"norm_eps": None}, "norm_eps must be a positive number, found None"),
        ({"dim": 66}, "dim must be a multiple of n_heads, found 66 and 4"),
        ({"n_kv_heads": 3}, "n_heads must be a multiple of n_kv_heads"),
        ({"vocab_size": -1}, "vocab_size must be a positive whole number, found -1"),
        ({"n_layers": 2.0}, "n_layers must be a positive whole number"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope must be true or false"),
        ({"dim": 4, "n_heads": 4}, "must be even"),
    ],
)
def test_bad_fields_are_named(change, message):
    with pytest.raises(lab.CheckpointError, match=message):
        lab.LlamaConfig.from_params(TINY | change)


def test_missing_fields_are_named():
    with pytest.raises(lab.CheckpointError, match=r"missing fields \['dim', 'norm_eps'\]"):
        lab.LlamaConfig.from_params({k: v for k, v in TINY.items() if k not in ("dim", "norm_eps")})
