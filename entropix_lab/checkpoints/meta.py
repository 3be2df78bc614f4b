"""Meta's own format: params.json and consolidated.*.pth of a folder, verified."""

import itertools
import zipfile
from pathlib import Path

from ..files import read_json
from ..llama.config import CheckpointError, LlamaConfig
from ..llama.sharding import shard_dim
from .sums import known_sums
from .tensors import Piece, Tensor, check_tensors, tensor_shapes


def read_config(folder) -> LlamaConfig:
    """The LlamaConfig of a checkpoint folder, from its params.json. Raises CheckpointError."""
    file = Path(folder) / "params.json"
    params = read_json(file)
    try:
        return LlamaConfig.from_params(params)
    except CheckpointError as e:
        raise CheckpointError(f"{file.parent / str(e)}") from e


def open_tensors(folder, config: LlamaConfig):
    """Yield a Tensor for every tensor of a folder, in the order of tensor_shapes; the files are mapped, and not read.

    Raises CheckpointError for a gap in the numbering, a damaged file, a pickle that holds anything but tensors, every
    missing, unexpected or misshaped tensor (all are named at once), and shards that do not belong together.
    """
    folder = Path(folder)
    files = sorted(folder.glob("consolidated.*.pth"))
    expected = [f"consolidated.{i:02d}.pth" for i in range(max(1, len(files)))]
    if [f.name for f in files] != expected:
        raise CheckpointError(f"{folder}: expected {expected}, found {[f.name for f in files]}. Download the rest.")
    shards = [_open_shard(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        shard.pop("rope.freqs", None)  # older official files carry the RoPE table; it follows from params.json
        spell = lambda name, shape: (name, _shard_shape(name, shape, len(files)))
        check_tensors(shard, config, spell, file, "params.json")
    _check_shards(folder, files, shards)
    for name, shape in tensor_shapes(config).items():
        pieces = [Piece(file, name, shard[name]) for file, shard in zip(files, shards, strict=True)]
        yield Tensor(name, shape, pieces[:1] if shard_dim(name) is None else pieces)


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


def _check_shards(folder, files, shards):
    """A shard copied over another has all the right names and shapes; one whose norms differ is another model's; and
    where no published sum says which is which, the names under which torch saved them do."""
    wq = "layers.0.attention.wq.weight"
    for (first, x), (second, y) in itertools.combinations(zip(files, shards, strict=True), 2):
        if x[wq].equal(y[wq]):
            raise CheckpointError(f"{second}: holds the same tensors as {first.name}. Download both again.")
    for file, shard in zip(files[1:], shards[1:], strict=True):
        for name in shard:
            if shard_dim(name) is None and not shard[name].equal(shards[0][name]):
                raise CheckpointError(f"{file}: {name} differs from {files[0].name}; expected one model's shards")
    if all(known_sums(folder)[file][0] == "crc32" for file in files):
        roots = [_root(file) for file in files]
        for file, root in zip(files, roots, strict=True):
            if root != file.stem and sorted(roots) == [f.stem for f in files]:
                raise CheckpointError(
                    f"{file}: was saved as {root}.pth: the shards changed places. Give them their names back."
                )


def _root(file) -> str:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()[0].split("/")[0]
