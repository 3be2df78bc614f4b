"""Meta's own format: params.json and consolidated.*.pth of a folder, verified, as named host arrays."""

import functools
import itertools
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from ..llama.config import CheckpointError, LlamaConfig
from ..llama.sharding import shard_dim
from .sums import check_order, known_sums


def read_json(file) -> dict:
    """A JSON object. Raises CheckpointError that names the file."""
    try:
        found = json.loads(Path(file).read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{file}: expected a JSON object, found {e}. Copy the file again.") from e
    return found


def read_config(folder) -> LlamaConfig:
    """The LlamaConfig of a checkpoint folder, from its params.json. Raises CheckpointError."""
    file = Path(folder) / "params.json"
    params = read_json(file)
    try:
        return LlamaConfig.from_params(params)
    except CheckpointError as e:
        raise CheckpointError(f"{file.parent / str(e)}") from e


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an official checkpoint under Meta's name, with its whole (unsharded) shape, largest first."""
    D, F, V = config.dim, config.ffn_dim, config.vocab_size
    KH = config.n_kv_heads * config.head_dim
    shapes = {"tok_embeddings.weight": (V, D), "output.weight": (V, D), "norm.weight": (D,)}
    for i in range(config.n_layers):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (D, D),
            f"layers.{i}.attention.wk.weight": (KH, D),
            f"layers.{i}.attention.wv.weight": (KH, D),
            f"layers.{i}.attention.wo.weight": (D, D),
            f"layers.{i}.feed_forward.w1.weight": (F, D),
            f"layers.{i}.feed_forward.w2.weight": (D, F),
            f"layers.{i}.feed_forward.w3.weight": (F, D),
            f"layers.{i}.attention_norm.weight": (D,),
            f"layers.{i}.ffn_norm.weight": (D,),
        }
    return shapes


def open_shards(folder, config: LlamaConfig) -> list[dict]:
    """The tensors of every consolidated.*.pth, memory-mapped, as one dict of torch tensors to a shard.

    Raises CheckpointError for a gap in the numbering, a damaged file, a pickle that holds anything but tensors, and
    every missing, unexpected or misshaped tensor (all are named at once).
    """
    folder = Path(folder)
    files = sorted(folder.glob("consolidated.*.pth"))
    expected = [f"consolidated.{i:02d}.pth" for i in range(max(1, len(files)))]
    if [f.name for f in files] != expected:
        raise CheckpointError(f"{folder}: expected {expected}, found {[f.name for f in files]}. Download the rest.")
    shards = [_open_shard(file) for file in files]
    if config.n_layers > len(shards[0]):  # before a damaged number makes a list of a billion names
        raise CheckpointError(f"{files[0]}: params.json says {config.n_layers} layers, found {len(shards[0])} tensors")
    for file, shard in zip(files, shards, strict=True):
        shard.pop("rope.freqs", None)  # older official files carry the RoPE table; it follows from params.json
        problems = []
        shapes = {n: _shard_shape(n, s, len(files)) for n, s in tensor_shapes(config).items()}
        for name in sorted(shapes.keys() | shard.keys()):
            if name not in shard:
                problems.append(f"missing {name} {shapes[name]}")
            elif name not in shapes:
                problems.append(f"unexpected {name} {tuple(shard[name].shape)}")
            elif tuple(shard[name].shape) != shapes[name]:
                problems.append(f"{name}: expected shape {shapes[name]}, found {tuple(shard[name].shape)}")
            elif not shard[name].is_floating_point() or shard[name].element_size() < 2:
                problems.append(f"{name}: expected a float of 16 bits or more, found {shard[name].dtype}")
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise CheckpointError(
                f"{file}: {'; '.join(problems[:8])}{more}. Do params.json and the .pth files belong to the same model?"
            )
    _check_shards_differ(files, shards)
    if all(known_sums(folder)[file][0] == "crc32" for file in files):
        check_order(files)
    return shards


def _open_shard(file) -> dict:
    import torch

    try:
        shard = torch.load(file, mmap=True, weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises many types here, pickle.UnpicklingError and RuntimeError among them
        raise CheckpointError(
            f"{file}: expected a torch file with nothing but tensors, found one that is damaged or holds other objects "
            f"({str(e).splitlines()[0][:200]}). Delete it and download it again."
        ) from e
    if not isinstance(shard, dict) or not all(isinstance(t, torch.Tensor) for t in shard.values()):
        raise CheckpointError(f"{file}: expected a dict of tensors, found {type(shard).__name__} with other objects")
    return shard


def _shard_shape(name, shape, n):
    dim = shard_dim(name)
    if dim is None:
        return shape
    if shape[dim] % n:
        raise CheckpointError(f"{name}: dimension {dim} of {shape} cannot be split over {n} consolidated.*.pth files")
    return tuple(size // n if i == dim else size for i, size in enumerate(shape))


def _check_shards_differ(files, shards):
    """A shard copied over another has all the right names and shapes; one whose norms differ is another model's."""
    wq = "layers.0.attention.wq.weight"
    for (first, x), (second, y) in itertools.combinations(zip(files, shards, strict=True), 2):
        if x[wq].equal(y[wq]):
            raise CheckpointError(f"{second}: holds the same tensors as {first.name}. Download both again.")
    for file, shard in zip(files[1:], shards[1:], strict=True):
        for name in shard:
            if shard_dim(name) is None and not shard[name].equal(shards[0][name]):
                raise CheckpointError(f"{file}: {name} differs from {files[0].name}; expected one model's shards")


def _raise(error):
    raise error


def read_parts(folder, config: LlamaConfig, report=_raise):
    """Yield (name, shape, read) for every tensor of a folder, the two largest first. read(index), a tuple of slices, is
    that part of the whole tensor as a host array in the dtype of the file (bfloat16 as ml_dtypes.bfloat16): a view of
    the mapped file where it lies in one, and nothing else of the tensor is touched.

    Raises CheckpointError; the one for NaN or infinite weights is handed to report, which may go on.
    """
    shards = open_shards(folder, config)
    for name, shape in tensor_shapes(config).items():
        whole = [shard[name] for shard in (shards[:1] if shard_dim(name) is None else shards)]
        yield name, shape, functools.partial(_read_part, Path(folder), name, whole, report)


def _read_part(folder, name, shards, report, index):
    dim = shard_dim(name) or 0
    size = shards[0].shape[dim]
    start, stop, _ = index[dim].indices(size * len(shards))
    parts = []
    for i in range(start // size, -(-stop // size)):
        here = list(index)
        here[dim] = slice(max(start - i * size, 0), min(stop - i * size, size))
        part = _as_numpy(shards[i])[tuple(here)]
        _check_finite(folder / f"consolidated.{i:02d}.pth", name, part, report)
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=dim)


def _check_finite(file, name, array, report):
    # What is not finite has the largest bit patterns of its sign: the greatest of them as signed and as unsigned whole
    # numbers are found at the speed of memory, without an array of their size.
    for kind, infinite in (("i", np.inf), ("u", -np.inf)):
        bits = f"{kind}{array.itemsize}"
        if array.view(bits).max() >= np.array(infinite, array.dtype).view(bits):
            bad = int((~np.isfinite(array)).sum())
            report(
                CheckpointError(
                    f"{file}: {name}: expected finite weights, found {bad} of {array.size} NaN or infinite. The file "
                    "was damaged or saved from a run that diverged: get it again."
                )
            )
            return


def _as_numpy(tensor) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
