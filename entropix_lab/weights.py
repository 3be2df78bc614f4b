"""Host arrays to JAX arrays, under Meta's names and in Meta's [out, in] layout; the Model that people load."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .checkpoint import find_checkpoint, load_config, read_tensors, verify_checksums
from .config import LlamaConfig, dtype_name
from .tokenizer import Tokenizer


def linear(x, w):
    """x [...,in] times a weight in Meta's layout [out,in]; a weight wider than x rounds its result to x's dtype."""
    return (x @ w.T).astype(x.dtype)


class LayerWeights(NamedTuple):
    """One transformer block. Shapes: wq, wo [D,D]; wk, wv [K*H,D]; w1, w3 [F,D]; w2 [D,F]; norms [D]."""

    wq: jax.Array
    wk: jax.Array
    wv: jax.Array
    wo: jax.Array
    w1: jax.Array
    w2: jax.Array
    w3: jax.Array
    attention_norm: jax.Array
    ffn_norm: jax.Array

    def qkv(self, x):
        """Queries [B,T,D], keys and values [B,T,K*H] of x [B,T,D]."""
        return linear(x, self.wq), linear(x, self.wk), linear(x, self.wv)

    def gate_up(self, x):
        """The two branches of SwiGLU, [B,T,F] each: w1 of x, and w3 of x."""
        return linear(x, self.w1), linear(x, self.w3)


class FusedLayerWeights(NamedTuple):
    """The same block with wq, wk, wv in one matrix and w1, w3 in another: fewer and larger products."""

    wqkv: jax.Array
    wo: jax.Array
    w13: jax.Array
    w2: jax.Array
    attention_norm: jax.Array
    ffn_norm: jax.Array

    def qkv(self, x):
        q = self.wo.shape[1]
        return jnp.split(linear(x, self.wqkv), (q, (q + self.wqkv.shape[0]) // 2), axis=-1)

    def gate_up(self, x):
        return jnp.split(linear(x, self.w13), 2, axis=-1)


class XfmrWeights(NamedTuple):
    """The whole model: tok_embeddings, output [V,D] (one array where the two are equal), norm [D], layer_weights."""

    tok_embeddings: jax.Array
    norm: jax.Array
    output: jax.Array
    layer_weights: tuple[LayerWeights | FusedLayerWeights, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """What load_model returns; ``dataclasses.replace(model, weights=...)`` is how an experiment changes it."""

    config: LlamaConfig
    weights: XfmrWeights
    tokenizer: Tokenizer | None
    path: Path

    def __repr__(self):
        c = self.config
        return (
            f"Model({self.name}, {self.dtype}, {c.n_layers} layers of dim {c.dim}, {c.n_heads} heads on "
            f"{c.n_kv_heads}, vocabulary {c.vocab_size}{'' if self.tokenizer else ', no tokenizer'})"
        )

    @property
    def name(self) -> str:
        return self.path.parent.name if self.path.name == "original" else self.path.name

    @property
    def dtype(self) -> str:
        return str(self.weights.tok_embeddings.dtype)

    @property
    def matmul_precision(self) -> str | None:
        """For jax.default_matmul_precision: a GPU would take TF32 for float32's products."""
        return "highest" if self.dtype == "float32" else None

    @cached_property
    def decode_weights(self) -> XfmrWeights:
        """The weights as generation uses them (see decode_weights below), made once."""
        return decode_weights(self.weights)

    def encode(self, text_or_tokens) -> np.ndarray:
        """Text, token ids [T], or [B,T] (lists, or arrays of NumPy, JAX or PyTorch) -> [B,T] int32.

        Raises ValueError for an empty prompt, a token outside the vocabulary, and whatever is neither text nor ids.
        """
        if isinstance(text_or_tokens, str):
            if self.tokenizer is None:
                raise ValueError(f"{self.path} has no tokenizer.model: give token ids, or copy that file there")
            text_or_tokens = self.tokenizer.encode(text_or_tokens)
        tokens = to_numpy(text_or_tokens)
        if tokens.size == 0:
            raise ValueError("the prompt is empty: expected at least one token")
        if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
            what = f"{tokens.dtype} of {tokens.shape}" if tokens.ndim else f"{text_or_tokens!r:.60}"
            raise ValueError(f"expected text, or token ids [T] or [B,T], found {what}")
        if (outside := tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]).size:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.config.vocab_size}")
        return np.atleast_2d(tokens).astype(np.int32)


def to_numpy(x) -> np.ndarray:
    """x as an array on the host: also a tensor of PyTorch's that has a gradient or lives on another device. Raises
    ValueError for lists whose rows differ in length."""
    try:
        return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    except (TypeError, ValueError) as e:
        raise ValueError(f"expected text, or token ids [T] or [B,T], found {type(x).__name__}: {e}") from e


def load_and_convert_weights(path, dtype="float32") -> XfmrWeights:
    """The weights of an official checkpoint (a folder or a name) as JAX arrays of dtype on the default device.

    dtype: float32, bfloat16 or float64, by name or as NumPy's, JAX's or PyTorch's; float64 needs 64-bit JAX.
    One tensor at a time, so that the host holds at most the weights and one tensor; bfloat16 files go to bfloat16
    arrays without a detour. Raises CheckpointError for whatever is wrong with the files, ValueError for another dtype.
    """
    dtype = jnp.dtype(dtype_name(dtype))
    folder = find_checkpoint(path)
    config = load_config(folder)
    verify_checksums(folder)
    if jnp.zeros((), dtype).dtype != dtype:
        raise ValueError(f"{dtype} needs 64-bit JAX: load inside `with jax.enable_x64(True)`")
    arrays, embeddings = {}, None
    for name, array in read_tensors(folder, config):
        if name == "output.weight" and np.array_equal(array, embeddings):
            arrays[name] = arrays["tok_embeddings.weight"]
        else:
            # a copy, never a view: JAX would alias the mapped file, which may change under it
            arrays[name] = jnp.array(array.astype(dtype, copy=False), copy=True).block_until_ready()
        embeddings = array if name == "tok_embeddings.weight" else embeddings
    layer = lambda i: LayerWeights(**{f: arrays[f"layers.{i}.{_MODULE[f]}.weight"] for f in LayerWeights._fields})
    return XfmrWeights(
        arrays["tok_embeddings.weight"],
        arrays["norm.weight"],
        arrays["output.weight"],
        tuple(layer(i) for i in range(config.n_layers)),
    )


_MODULE = (
    {f: f"attention.{f}" for f in ("wq", "wk", "wv", "wo")}
    | {f: f"feed_forward.{f}" for f in ("w1", "w2", "w3")}
    | {f: f for f in ("attention_norm", "ffn_norm")}
)


def decode_weights(weights: XfmrWeights) -> XfmrWeights:
    """The form of the weights in which single tokens are fastest; on anything but a CPU, the weights themselves.

    A CPU spends a token's time on reading weights: products of one row with one matrix for wq, wk, wv and one for w1,
    w3 read them a quarter faster than five. bfloat16 weights become float32 copies, because XLA's products of bfloat16
    are many times slower there; the forward rounds each result, so the numbers stay those of bfloat16. Costs a copy.
    """
    if weights.norm.devices().pop().platform != "cpu":
        return weights
    return weights._replace(output=_wide(weights.output), layer_weights=tuple(map(fused, weights.layer_weights)))


def fused(w: LayerWeights) -> FusedLayerWeights:
    """One layer in its fused form, matrices in float32 at least."""
    if isinstance(w, FusedLayerWeights):
        return w
    qkv, w13 = _wide(jnp.concatenate((w.wq, w.wk, w.wv))), _wide(jnp.concatenate((w.w1, w.w3)))
    return FusedLayerWeights(qkv, _wide(w.wo), w13, _wide(w.w2), w.attention_norm, w.ffn_norm)


def unfused(w) -> LayerWeights:
    """One layer as plain LayerWeights, whatever class holds it."""
    if not isinstance(w, FusedLayerWeights):
        return LayerWeights(*w)
    q, (w1, w3) = w.wo.shape[1], jnp.split(w.w13, 2)
    wq, wk, wv = jnp.split(w.wqkv, (q, (q + w.wqkv.shape[0]) // 2))
    return LayerWeights(wq, wk, wv, w.wo, w1, w.w2, w3, w.attention_norm, w.ffn_norm)


def _wide(x):
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def load_model(name, dtype="float32") -> Model:
    """A model by official name ("Llama3.2-1B-Instruct"), by folder, or the demo ("SmolLM2-135M-Instruct").

    dtype: as for load_and_convert_weights.
    Turns on JAX's persistent compilation cache, unless one is set already, so that a second start is quick.
    Raises CheckpointError, which says what to download when the model is not on this machine, and ValueError for a
    dtype that the forward is not made for.
    """
    dtype = dtype_name(dtype)
    _use_compilation_cache()
    folder = find_checkpoint(name)
    config = load_config(folder)
    tokenizer = Tokenizer(folder / "tokenizer.model") if (folder / "tokenizer.model").is_file() else None
    return Model(config, load_and_convert_weights(folder, dtype), tokenizer, folder)


def _use_compilation_cache():
    import platformdirs

    # On a CPU these print errors on stderr for each program from the cache, because the compiler's own preferences are
    # listed as features of the machine. TF_CPP_MIN_LOG_LEVEL (to which jax gives 1) is read when jax is imported; this
    # works at any time.
    noisy = jax.lib.__version__ in ("0.9.2", "0.10.0", "0.10.1")
    unset = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1" and jax.config.jax_logging_level in (None, "NOTSET")
    if noisy and unset:
        jax.config.update("jax_logging_level", "CRITICAL")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("entropix_lab") / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def nbytes(weights) -> int:
    """Bytes of a pytree of arrays, each array counted once however often it occurs."""
    return sum(x.nbytes for x in {id(x): x for x in jax.tree.leaves(weights)}.values())


def by_name(weights: XfmrWeights) -> dict[str, jax.Array]:
    """The arrays under the names that they have in the file."""
    named = {"tok_embeddings": weights.tok_embeddings, "norm": weights.norm, "output": weights.output}
    for i, layer in enumerate(weights.layer_weights):
        named |= {f"layers.{i}.{_MODULE[f]}": x for f, x in layer._asdict().items()}
    return {f"{name}.weight": x for name, x in named.items()}
