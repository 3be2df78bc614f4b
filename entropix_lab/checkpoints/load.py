"""From a model's name or folder to its config and weights, and to the Model that has them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ..compiler import use_compilation_cache
from ..cpu_weights import aligned, decode_layer, decode_weights, on_one_cpu
from ..llama import sharding
from ..llama.config import CheckpointError, LlamaConfig, dtype_name
from ..llama.weights import LayerWeights, XfmrWeights, take_layer
from ..loaded_model import Model
from ..tokenizer import Tokenizer, load_tokenizer
from .find import find_checkpoint, reader_of
from .sums import system_errors, verify_checksums
from .tensors import as_torch


@system_errors()
def load_config(path) -> LlamaConfig:
    """The LlamaConfig of a checkpoint folder (or name), from its params.json or config.json. Raises CheckpointError."""
    folder = find_checkpoint(path)
    return reader_of(folder).read_config(folder)


@system_errors()
def load_model(name, dtype="float32", mesh=None, for_generation: bool = False) -> Model:
    """A model by name ("Llama3.2-1B-Instruct"; see find_checkpoint), by folder in Meta's or Hugging Face's format, or
    the demo ("SmolLM2-135M-Instruct").

    dtype, mesh: as for load_and_convert_weights. Everything that takes a Model then runs on the mesh's devices.
    for_generation: keep the weights only in the form that generation reads (see cpu_weights), which on a CPU would
    otherwise be a second copy of all matrices.
    Turns on JAX's persistent compilation cache, unless one is set already, so that a second start is quick.
    Raises CheckpointError, which says what to download when the model is not on this machine, and ValueError for a
    dtype that the forward is not made for and a mesh over which the model cannot be split.
    """
    dtype = dtype_name(dtype)
    use_compilation_cache()
    folder = find_checkpoint(name)
    config = reader_of(folder).read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    return Model(config, _read_weights(folder, config, jnp.dtype(dtype), mesh, for_generation), tokenizer, folder)


@system_errors()
def load_and_convert_weights(path, dtype="float32", mesh=None) -> XfmrWeights:
    """The weights of a checkpoint (a folder or a name) as JAX arrays of dtype on the default device, or on a mesh.

    dtype: float32, bfloat16 or float64, by name or as NumPy's, JAX's or PyTorch's; float64 needs 64-bit JAX.
    One tensor at a time, so that the host holds at most the weights and one tensor; bfloat16 files go to bfloat16
    arrays without a detour.
    mesh: as lab.mesh makes it. Each device gets the part that Meta's tensor parallelism gives to the rank of its place
    along "model", from files of either format and of any number of shards; a process reads no more than its devices
    hold, and of Meta's shards checks the sums of those that it reads. Raises
    CheckpointError for whatever is wrong with the files, ValueError for another dtype or a mesh that does not fit.
    """
    dtype = jnp.dtype(dtype_name(dtype))
    folder = find_checkpoint(path)
    return _read_weights(folder, reader_of(folder).read_config(folder), dtype, mesh)


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


def _read_weights(folder, config, dtype, mesh, for_generation=False):
    unread = ()
    if mesh is not None:
        sharding.check_divisible(config, mesh)
        unread = _of_others(folder, mesh)
    verify_checksums(folder, unread)
    if jnp.zeros((), dtype).dtype != dtype:
        raise ValueError(f"{dtype} needs 64-bit JAX: load inside `with jax.enable_x64(True)`")
    arrays, embeddings = {}, None
    tensors = reader_of(folder).open_tensors(folder, config)
    # a bar for what takes more than two seconds, and in a terminal alone
    for tensor in tqdm(tensors, f"loading {folder.name}", 3 + 9 * config.n_layers, delay=2, disable=None):
        name, place, indices = tensor.name, None, [None]
        if mesh is not None:
            place = sharding.of_weight(mesh, name)
            indices = place.addressable_devices_indices_map(tensor.shape).values()
        parts = {str(index): tensor.read(index) for index in indices}
        if name == "output.weight" and all(_same(part, embeddings[index]) for index, part in parts.items()):
            arrays[name] = arrays["tok_embeddings.weight"]
        elif mesh is None:
            arrays[name] = jax.device_put(_own(*parts.values(), dtype)).block_until_ready()
        else:
            part = lambda index, parts=parts: _own(parts[str(index)], dtype)
            arrays[name] = jax.make_array_from_callback(tensor.shape, place, part).block_until_ready()
        embeddings = parts if name == "tok_embeddings.weight" else embeddings
    kind = LayerWeights if mesh is None else sharding.SplitLayerWeights
    # layer by layer, so that no more than one is there in two forms
    form = decode_layer if for_generation and on_one_cpu(arrays["norm.weight"]) else lambda w: w
    outer = (arrays[f"{name}.weight"] for name in ("tok_embeddings", "norm", "output"))
    weights = XfmrWeights(*outer, tuple(form(take_layer(arrays, i, kind)) for i in range(config.n_layers)))
    return decode_weights(weights) if for_generation else weights


def _of_others(folder, mesh) -> list[Path]:
    """Meta's shards of which no device of this process holds anything."""
    files, held = sorted(folder.glob("consolidated.*.pth")), sharding.of_process(mesh)
    n = len(files)
    return [f for i, f in enumerate(files) if all(end * n <= i or start * n >= i + 1 for start, end in held)]


def _own(array, dtype):
    """array as one of NumPy's in dtype, converted and copied in one pass, never a view of a file that may change.

    JAX on a CPU refers to the copy: no second array comes and goes. Those that did stayed in the arenas that malloc
    gives to each of JAX's threads, and took up to 0.6 times the weights.
    """
    (copy,) = aligned((array.shape, dtype))
    if array.dtype != np.float16:
        copy[...] = array
        return copy
    # torch takes a third of NumPy's time; of so few rows at once it starts no threads, which are slow on busy cores
    rows = max(1, 2**15 * len(array) // (array.size + 1))
    for ours, theirs in zip(as_torch(copy).split(rows), as_torch(array).split(rows), strict=True):
        ours.copy_(theirs)
    return copy


def _same(a, b) -> bool:
    """Whether two arrays have the same bits, compared by pieces: what compares needs memory too."""
    if a.dtype != b.dtype:
        return False
    a, b = (x.view(f"u{x.itemsize}") for x in (a, b))
    return a.ctypes.data == b.ctypes.data or all(
        np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024)
    )
