"""Rotary position embeddings, real-valued (some backends have no complex numbers), in Meta's interleaved layout."""

import jax.numpy as jnp
import numpy as np

from .config import ROPE_SCALING


def apply_scaling(
    freqs: np.ndarray, scale_factor: float = 8.0, low_freq_factor=1.0, high_freq_factor=4.0, old_context_len=8192
) -> np.ndarray:
    """Llama 3.1's stretch of the slow rotations: freqs [H/2] in radians per position -> the same shape.

    Wavelengths above old_context_len / low_freq_factor positions are divided by scale_factor, those below
    old_context_len / high_freq_factor are kept, those between are blended (``apply_scaling`` in
    llama_models.llama3.model, which fixes all four to the defaults here).
    """
    wavelen = 2 * np.pi / freqs
    smooth = (old_context_len / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
    smooth = np.clip(smooth, 0, 1).astype(freqs.dtype)
    return ((1 - smooth) * freqs / scale_factor + smooth * freqs).astype(freqs.dtype)


def precompute_freqs_cis(config, end: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every rotation angle, each [end, H/2], computed in dtype as Meta does (in float32).

    The angle of pair i at position p is p * rope_theta ** (-2i/H), scaled first where use_scaled_rope is set.
    """
    H = config.head_dim
    freqs = (1.0 / np.power(dtype(config.rope_theta), np.arange(0, H, 2, dtype=dtype) / dtype(H))).astype(dtype)
    if config.use_scaled_rope:
        freqs = apply_scaling(freqs, *(getattr(config, name) for name in ROPE_SCALING))
    angles = np.outer(np.arange(end, dtype=dtype), freqs)
    return np.cos(angles), np.sin(angles)


def apply_rotary_emb(x, cos, sin):
    """Rotate each pair (x[2i], x[2i+1]) by its angle: x [B,T,heads,H], cos and sin [B,T,H/2] -> [B,T,heads,H]."""
    pairs = x.astype(cos.dtype).reshape(*x.shape[:-1], -1, 2)
    real, imag = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.stack([real * cos - imag * sin, real * sin + imag * cos], -1).reshape(x.shape).astype(x.dtype)
