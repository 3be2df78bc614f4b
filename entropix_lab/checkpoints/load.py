"""From a model's name or folder to the Model that people load."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ..compiler import use_compilation_cache
from ..llama.config import CheckpointError, LlamaConfig, dtype_name
from ..llama.prompts import to_numpy
from ..llama.weights import MODULE, LayerWeights, XfmrWeights, decode_weights
from .find import find_checkpoint, reader_of
from .sums import system_errors, verify_checksums
from .tokenizer import Tokenizer, load_tokenizer, why_no_tokenizer


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

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError that says why there is none."""
        if self.tokenizer is None:
            raise ValueError(why_no_tokenizer(self.path))
        return self.tokenizer

    def encode(self, text_or_tokens) -> np.ndarray:
        """Text, token ids [T], or [B,T] (lists, or arrays of NumPy, JAX or PyTorch) -> [B,T] int32.

        Raises ValueError for an empty prompt, a token outside the vocabulary, and whatever is neither text nor ids.
        """
        if isinstance(text_or_tokens, str):
            text_or_tokens = self.require_tokenizer().encode(text_or_tokens)
        tokens = to_numpy(text_or_tokens)
        if tokens.size == 0:
            raise ValueError("the prompt is empty: expected at least one token")
        if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
            what = f"{tokens.dtype} of {tokens.shape}" if tokens.ndim else f"{text_or_tokens!r:.60}"
            raise ValueError(f"expected text, or token ids [T] or [B,T], found {what}")
        if (outside := tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]).size:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.config.vocab_size}")
        return np.atleast_2d(tokens).astype(np.int32)


@system_errors()
def load_config(path) -> LlamaConfig:
    """The LlamaConfig of a checkpoint folder (or name), from its params.json or config.json. Raises CheckpointError."""
    folder = find_checkpoint(path)
    return reader_of(folder).read_config(folder)


@system_errors()
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
    tokenizer = read_tokenizer(folder, config)
    return Model(config, _read_weights(folder, config, jnp.dtype(dtype)), tokenizer, folder)


@system_errors()
def load_and_convert_weights(path, dtype="float32") -> XfmrWeights:
    """The weights of a checkpoint (a folder or a name) as JAX arrays of dtype on the default device.

    dtype: float32, bfloat16 or float64, by name or as NumPy's, JAX's or PyTorch's; float64 needs 64-bit JAX.
    One tensor at a time, so that the host holds at most the weights and one tensor; bfloat16 files go to bfloat16
    arrays without a detour. Raises CheckpointError for whatever is wrong with the files, ValueError for another dtype.
    """
    dtype = jnp.dtype(dtype_name(dtype))
    folder = find_checkpoint(path)
    return _read_weights(folder, reader_of(folder).read_config(folder), dtype)


def read_tokenizer(folder, config) -> Tokenizer | None:
    """The folder's tokenizer, None where it has none that can be read. Raises CheckpointError for another model's."""
    tokenizer = load_tokenizer(folder)
    # vocabularies are padded to such multiples at most
    if tokenizer is not None and not 0 <= config.vocab_size - tokenizer.n_words < 1024:
        raise CheckpointError(
            f"{folder}: expected a tokenizer of the model's {config.vocab_size} tokens, found one of "
            f"{tokenizer.n_words}: it is another model's. Copy the one that belongs to these weights."
        )
    return tokenizer


def read_tensors(folder, config: LlamaConfig):
    """Yield (Meta's name, host array in Meta's layout) for every tensor of a folder of either format."""
    return reader_of(folder).read_tensors(folder, config)


def _read_weights(folder, config, dtype):
    verify_checksums(folder)
    if jnp.zeros((), dtype).dtype != dtype:
        raise ValueError(f"{dtype} needs 64-bit JAX: load inside `with jax.enable_x64(True)`")
    arrays, embeddings = {}, None
    tensors = read_tensors(folder, config)
    # a bar for what takes more than two seconds, and in a terminal alone
    for name, array in tqdm(tensors, f"loading {folder.name}", 3 + 9 * config.n_layers, delay=2, disable=None):
        if name == "output.weight" and _same(array, embeddings):
            arrays[name] = arrays["tok_embeddings.weight"]
        else:
            arrays[name] = _own(array, dtype)
        embeddings = array if name == "tok_embeddings.weight" else embeddings
    layer = lambda i: LayerWeights(**{f: arrays[f"layers.{i}.{MODULE[f]}.weight"] for f in LayerWeights._fields})
    return XfmrWeights(
        arrays["tok_embeddings.weight"],
        arrays["norm.weight"],
        arrays["output.weight"],
        tuple(layer(i) for i in range(config.n_layers)),
    )


def _own(array, dtype):
    """array as a JAX array of dtype, converted and copied in one pass, never a view of a file that may change.

    NumPy owns the copy and JAX on a CPU refers to it, as it does where memory is aligned to 64 bytes: no second array
    comes and goes. Those that did stayed in the arenas that malloc gives to each of JAX's threads, and took up to 0.6
    times the weights.
    """
    memory = np.empty(array.size * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.size * dtype.itemsize].view(dtype).reshape(array.shape)
    copy[...] = array
    return jax.device_put(copy).block_until_ready()


def _same(a, b) -> bool:
    """Whether two arrays have the same bits, compared by pieces: what compares needs memory too."""
    if a.dtype != b.dtype:
        return False
    a, b = (x.view(f"u{x.itemsize}") for x in (a, b))
    return a.ctypes.data == b.ctypes.data or all(
        np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024)
    )
