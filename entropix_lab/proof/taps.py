"""The names, shapes and meaning of every value that is compared: the schema of a comparison.

Whoever taps another implementation names its values so (B rows, T tokens, N query heads, K key/value heads, H head_dim;
i counts layers):

    tok_embeddings                                   [B,T,D]    the embedding of each token
    layers.i.attention_norm                          [B,T,D]    after the RMSNorm and its gain
    layers.i.attention.wq, .wk, .wv                  [B,T,N*H]  (K*H) the products, before RoPE
    layers.i.attention.xq_rope, .xk_rope             [B,T,N,H]  (K) rotated; Meta's layout pairs entries 2j and 2j+1
    layers.i.attention.scores                        [B,N,T,T]  divided by sqrt(H), -inf where masked
    layers.i.attention.probs                         [B,N,T,T]  their softmax, 0 where masked
    layers.i.attention.wo                            [B,T,D]    attention's output, before the residual sum
    layers.i.h_attn                                  [B,T,D]    the stream after that sum
    layers.i.ffn_norm                                [B,T,D]
    layers.i.feed_forward.w1, .w3, .w2               [B,T,F], [B,T,F], [B,T,D]  gate before SiLU, up, down
    layers.i                                         [B,T,D]    the stream after the layer
    norm, output                                     [B,T,D], [B,T,V]  the final RMSNorm, the logits

This is also the order of execution. Query head n reads key/value head n // (N/K). Values are floats, float64 is
rounded to float32; they are compared in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

# What each op of a layer is and which values of the same layer it reads; "" is the layer's own output.
OPS = {
    "attention_norm": ("the RMSNorm before attention", ("the layer's input",)),
    "attention.wq": ("the queries", ("attention_norm",)),
    "attention.wk": ("the keys", ("attention_norm",)),
    "attention.wv": ("the values", ("attention_norm",)),
    "attention.xq_rope": ("the queries after RoPE", ("attention.wq",)),
    "attention.xk_rope": ("the keys after RoPE", ("attention.wk",)),
    "attention.scores": ("the attention scores and their mask", ("attention.xq_rope", "attention.xk_rope")),
    "attention.probs": ("the attention probabilities", ("attention.scores",)),
    "attention.wo": ("attention's output", ("attention.probs", "attention.wv")),
    "h_attn": ("the stream after attention", ("the layer's input", "attention.wo")),
    "ffn_norm": ("the RMSNorm before the feed-forward", ("h_attn",)),
    "feed_forward.w1": ("the gate of the feed-forward", ("ffn_norm",)),
    "feed_forward.w3": ("the up-projection", ("ffn_norm",)),
    "feed_forward.w2": ("the feed-forward's output", ("feed_forward.w1", "feed_forward.w3")),
    "": ("the stream after the layer", ("h_attn", "feed_forward.w2")),
}

OUTER_OPS = {
    "tok_embeddings": ("the embedding of each token", ("the tokens",)),
    "norm": ("the final RMSNorm", ("the last layer's output",)),
    "output": ("the logits", ("norm",)),
}


def full_name(i: int, op: str) -> str:
    """(3, "attention.wq") -> "layers.3.attention.wq"; the op "" is the layer's own output."""
    return f"layers.{i}.{op}".rstrip(".")


def split(tap: str) -> tuple[int | None, str]:
    """ "layers.3.attention.wq" -> (3, "attention.wq"); taps outside the layers have None."""
    if not tap.startswith("layers."):
        return None, tap
    i, _, op = tap.removeprefix("layers.").partition(".")
    return int(i), op


def tap_names(n_layers: int) -> list[str]:
    """Every tap of a model of n_layers, in the order of execution."""
    return ["tok_embeddings", *(full_name(i, op) for i in range(n_layers) for op in OPS), "norm", "output"]


def tap_shape(name: str, config, B: int, T: int) -> tuple[int, ...]:
    """The shape of a tap of B rows of T tokens."""
    N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
    shapes = dict.fromkeys(("wk", "wv"), (B, T, K * H)) | {"wq": (B, T, N * H), "output": (B, T, config.vocab_size)}
    shapes |= dict.fromkeys(("w1", "w3"), (B, T, config.ffn_dim)) | dict.fromkeys(("scores", "probs"), (B, N, T, T))
    shapes |= {"xq_rope": (B, T, N, H), "xk_rope": (B, T, K, H)}
    return shapes.get(name.rsplit(".", 1)[-1], (B, T, config.dim))


def checked(name: str, value, shape):
    """Another implementation's tap as an array, JAX's or NumPy's. Raises ValueError for what is no array of floats of
    this shape."""
    try:
        value = value if isinstance(value, jax.Array) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a torch tensor in bfloat16, with a gradient, on a GPU
        raise ValueError(
            f"{name}: NumPy cannot read {type(value)} ({error}): hand over float32, if it is torch's with "
            "x.detach().float().cpu().numpy()"
        ) from error
    if value.shape != shape:
        raise ValueError(f"{name}: expected the shape {shape}, the reference has {value.shape}")
    if not jnp.issubdtype(value.dtype, jnp.floating):  # |V2 is what np.load makes of bfloat16
        raise ValueError(f"{name}: expected floats, found {value.dtype}: save taps as float32")
    return value
