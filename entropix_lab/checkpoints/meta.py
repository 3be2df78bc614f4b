"""Meta's own format: params.json, consolidated.*.pth and checklist.chk of a folder, verified, as named host arrays."""

import functools
import hashlib
import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np

from ..llama.config import CheckpointError, LlamaConfig


def read_config(folder) -> LlamaConfig:
    """The LlamaConfig of a checkpoint folder, from its params.json. Raises CheckpointError."""
    file = Path(folder) / "params.json"
    try:
        params = json.loads(file.read_text())
        if not isinstance(params, dict):
            raise ValueError(f"a {type(params).__name__}")
    except ValueError as e:
        raise CheckpointError(f"{file}: expected a JSON object, found {e}. Copy the file again.") from e
    try:
        return LlamaConfig.from_params(params)
    except CheckpointError as e:
        raise CheckpointError(f"{file.parent / str(e)}") from e


def verify_checksums(folder) -> list[str]:
    """Compare the files of a folder with the md5 lines of its checklist.chk; the names that were checked.

    Returns [] where there is no checklist. Raises CheckpointError that names the damaged or missing file: Meta's
    downloader appends to what an interrupted run left, so a file can be too long and "successfully downloaded".
    """
    checklist = Path(folder) / "checklist.chk"
    if not checklist.is_file():
        return []
    checked = []
    for line in checklist.read_text().split("\n"):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-f]{32})\s+\*?(\S+)", line.strip())
        if match is None:
            raise CheckpointError(f"{checklist}: expected lines of an md5 and a name, found {line!r}")
        file = checklist.parent / match[2]
        if not file.is_file():
            raise CheckpointError(
                f"{file}: named in checklist.chk, found nothing. Download it again, or copy the whole folder."
            )
        found = md5(file)
        if found != match[1]:
            raise CheckpointError(
                f"{file}: expected md5 {match[1]}, found {found} ({file.stat().st_size:,} bytes). The file is damaged: "
                "delete it and download it again."
            )
        checked.append(file.name)
    return checked


def md5(file) -> str:
    """The md5 sum of a file, computed once a process for a file that does not change."""
    stat = os.stat(file)
    return _md5(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache
def _md5(file, *changes) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


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


def shard_dim(name: str) -> int | None:
    """The dimension on which Meta's tensor parallelism splits a tensor; None for the norms, which every shard holds."""
    if "norm" in name:
        return None
    return 1 if name.endswith(("wo.weight", "w2.weight")) else 0


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
    for file, shard in zip(files[1:], shards[1:], strict=True):
        if shard["layers.0.attention.wq.weight"].equal(shards[0]["layers.0.attention.wq.weight"]):
            raise CheckpointError(f"{file}: holds the same tensors as {files[0].name}. Download both again.")
        for name in shard:
            if shard_dim(name) is None and not shard[name].equal(shards[0][name]):
                raise CheckpointError(f"{file}: {name} differs from {files[0].name}; expected one model's shards")


def read_tensors(folder, config: LlamaConfig):
    """Yield (name, host array) for every tensor of a folder, shards merged, the two largest first.

    The arrays are views of the mapped file wherever one shard holds the whole tensor, in the dtype of the file
    (bfloat16 as ml_dtypes.bfloat16): copy what you keep. Raises CheckpointError, also for NaN or infinite weights.
    """
    shards = open_shards(folder, config)
    for name in tensor_shapes(config):
        parts = []
        for i, shard in enumerate(shards[:1] if shard_dim(name) is None else shards):
            tensor = shard[name]
            _check_finite(Path(folder) / f"consolidated.{i:02d}.pth", name, tensor)
            parts.append(_as_numpy(tensor))
        yield name, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=shard_dim(name))


def _check_finite(file, name, tensor):
    import torch

    # a sum reads the tensor once and allocates nothing; only where it is not finite are the elements counted
    if tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).isfinite():
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise CheckpointError(
            f"{file}: {name}: expected finite weights, found {bad} of {tensor.numel()} NaN or infinite. The file was "
            "damaged or saved from a run that diverged: get it again."
        )


def _as_numpy(tensor) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
