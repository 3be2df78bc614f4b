"""From a model's name or folder to the Model that people load."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ..compiler import use_compilation_cache
from ..llama.config import LlamaConfig, dtype_name
from ..llama.prompts import to_numpy
from ..llama.weights import MODULE, LayerWeights, XfmrWeights, decode_weights
from .find import find_checkpoint, reader_of
from .meta import verify_checksums
from .tokenizer import Tokenizer


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
        path = self.path.parent if self.path.name == "original" else self.path
        if path.parent.name == "snapshots":  # Hugging Face's cache: models--organisation--name/snapshots/commit
            return path.parent.parent.name.rpartition("--")[2]
        return path.name

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


def load_config(path) -> LlamaConfig:
    """The LlamaConfig of a checkpoint folder (or name), from its params.json or config.json. Raises CheckpointError."""
    folder = find_checkpoint(path)
    return reader_of(folder).read_config(folder)


def load_model(name, dtype="float32") -> Model:
    """A model by name ("Llama3.2-1B-Instruct"; see find_checkpoint), by folder in Meta's or Hugging Face's format, or
    the demo ("SmolLM2-135M-Instruct").

    dtype: as for load_and_convert_weights.
    Turns on JAX's persistent compilation cache, unless one is set already, so that a second start is quick.
    Raises CheckpointError, which says what to download when the model is not on this machine, and ValueError for a
    dtype that the forward is not made for.
    """
    dtype = dtype_name(dtype)
    use_compilation_cache()
    folder = find_checkpoint(name)
    config = reader_of(folder).read_config(folder)
    tokenizer = Tokenizer(folder / "tokenizer.model") if (folder / "tokenizer.model").is_file() else None
    return Model(config, _read_weights(folder, config, jnp.dtype(dtype)), tokenizer, folder)


def load_and_convert_weights(path, dtype="float32") -> XfmrWeights:
    """The weights of a checkpoint (a folder or a name) as JAX arrays of dtype on the default device.

    dtype: float32, bfloat16 or float64, by name or as NumPy's, JAX's or PyTorch's; float64 needs 64-bit JAX.
    One tensor at a time, so that the host holds at most the weights and one tensor; bfloat16 files go to bfloat16
    arrays without a detour. Raises CheckpointError for whatever is wrong with the files, ValueError for another dtype.
    """
    dtype = jnp.dtype(dtype_name(dtype))
    folder = find_checkpoint(path)
    return _read_weights(folder, reader_of(folder).read_config(folder), dtype)


def _read_weights(folder, config, dtype):
    verify_checksums(folder)
    if jnp.zeros((), dtype).dtype != dtype:
        raise ValueError(f"{dtype} needs 64-bit JAX: load inside `with jax.enable_x64(True)`")
    arrays, embeddings = {}, None
    for name, array in reader_of(folder).read_tensors(folder, config):
        if name == "output.weight" and np.array_equal(array, embeddings):
            arrays[name] = arrays["tok_embeddings.weight"]
        else:
            # a copy, never a view: JAX would alias the mapped file, which may change under it
            arrays[name] = jnp.array(array.astype(dtype, copy=False), copy=True).block_until_ready()
        embeddings = array if name == "tok_embeddings.weight" else embeddings
    layer = lambda i: LayerWeights(**{f: arrays[f"layers.{i}.{MODULE[f]}.weight"] for f in LayerWeights._fields})
    return XfmrWeights(
        arrays["tok_embeddings.weight"],
        arrays["norm.weight"],
        arrays["output.weight"],
        tuple(layer(i) for i in range(config.n_layers)),
    )
