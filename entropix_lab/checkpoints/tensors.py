"""The tensors of a checkpoint, whatever its format: which there should be, whether they are, and parts of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ..llama.config import CheckpointError, LlamaConfig
from ..llama.sharding import shard_dim
from ..llama.weights import MODULE, LayerWeights


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an official checkpoint under Meta's name, with its whole (unsharded) shape, largest first."""
    D, F, V, KH = config.dim, config.ffn_dim, config.vocab_size, config.n_kv_heads * config.head_dim
    shapes = {"tok_embeddings.weight": (V, D), "output.weight": (V, D), "norm.weight": (D,)}
    matrices = dict(wq=(D, D), wk=(KH, D), wv=(KH, D), wo=(D, D), w1=(F, D), w2=(D, F), w3=(F, D))
    layer = LayerWeights(**matrices, attention_norm=(D,), ffn_norm=(D,))._asdict()
    for i in range(config.n_layers):
        shapes |= {f"layers.{i}.{MODULE[field]}.weight": shape for field, shape in layer.items()}
    return shapes


def check_tensors(found: dict, config: LlamaConfig, spell, where, configuration, optional=()) -> None:
    """Raises CheckpointError unless found, names -> torch tensors, are the tensors of config, all of them floats: all
    that is wrong is named at once.

    spell: Meta's name and whole shape -> those of the file. where, configuration: what an error calls the tensors and
    the config. optional: names that may be missing.
    """
    if config.n_layers > len(found):  # before a damaged number makes a list of a billion names
        raise CheckpointError(f"{where}: {configuration} says {config.n_layers} layers, found {len(found)} tensors")
    shapes = dict(spell(*item) for item in tensor_shapes(config).items())
    shapes = {name: shape for name, shape in shapes.items() if name in found or name not in optional}
    problems = []
    for name in sorted(shapes.keys() | found.keys()):
        if (tensor := found.get(name)) is None:
            problems.append(f"missing {name} {shapes[name]}")
            continue
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if name not in shapes:
            problems.append(f"unexpected {name} {shape}")
        elif shape != shapes[name]:
            problems.append(f"{name}: expected shape {shapes[name]}, found {shape}")
        elif not dtype.is_floating_point or dtype.itemsize < 2:
            problems.append(f"{name}: expected a float of 16 bits or more, found {dtype}")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(
            f"{where}: {'; '.join(problems[:8])}{more}. Do {configuration} and the weights belong to one model?"
        )


class Piece(NamedTuple):
    """A torch tensor that lies in a mapped file, and the name that it has there."""

    file: Path
    name: str
    tensor: object


class Tensor(NamedTuple):
    """A tensor of Meta's name and whole shape, of which nothing is read before read.

    pieces: what makes it up along the dimension on which Meta splits it. order: puts whole heads of rows into Meta's
    order, where the file has another.
    """

    name: str
    shape: tuple[int, ...]
    pieces: list[Piece]
    order: Callable = lambda w: w

    def read(self, index=None) -> np.ndarray:
        """The part at index, a tuple of slices (the whole unless given), as a host array in the dtype of the file: a
        view of it where the part lies in one piece in Meta's order, and nothing else is touched. Raises CheckpointError
        for NaN or infinite weights."""
        index, dim = index or (slice(None),) * len(self.shape), shard_dim(self.name) or 0
        size = self.shape[dim] // len(self.pieces)
        start, stop, _ = index[dim].indices(self.shape[dim])
        parts, bad = [], []
        for i in range(start // size, -(-stop // size)):
            here = slice(max(start - i * size, 0), min(stop - i * size, size))
            file, name, tensor = self.pieces[i]
            parts.append(part := as_numpy(tensor)[(*index[:dim], here, *index[dim + 1 :])])
            if not _is_finite(part):
                n = int((~np.isfinite(part)).sum())
                bad.append(f"{file}: {name}: expected finite weights, found {n} of {part.size} NaN or infinite.")
        if bad:
            raise CheckpointError(
                f"{' '.join(bad)} The file was damaged or saved from a run that diverged: get it again."
            )
        return self.order(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=dim))


def _is_finite(array) -> bool:
    # What is not finite has the largest bit patterns of its sign: the greatest of them as signed and as unsigned whole
    # numbers are found at the speed of memory, without an array of their size.
    bits = lambda x, kind: x.view(f"{kind}{array.itemsize}")
    below = lambda kind, infinite: bits(array, kind).max() < bits(np.array(infinite, array.dtype), kind)
    return bool(below("i", np.inf) and below("u", -np.inf))


def as_numpy(tensor) -> np.ndarray:
    """A torch tensor as an array of NumPy's, the same memory; bfloat16 is ml_dtypes.bfloat16."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def as_torch(array):
    """The way back."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
