"""Meta's format, written: a checkpoint of given tensors, or of random ones of any Llama's shape."""

import json
import shutil
from pathlib import Path

from ..llama.config import CheckpointError, LlamaConfig
from .meta import shard_dim, tensor_shapes
from .sums import digest

# Everything that Llama 3.2 has, at a size that is computed at once: grouped heads, scaled RoPE.
TINY = dict(
    dim=64,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=128,
    multiple_of=32,
    ffn_dim_multiplier=None,
    norm_eps=1e-5,
    rope_theta=500000.0,
    use_scaled_rope=True,
)


def write_checkpoint(
    folder, params: dict, tensors: dict, tokenizer_model: bytes | None = None, shards: int = 1
) -> Path:
    """Write an official-format folder (consolidated.*.pth, params.json, tokenizer.model, checklist.chk), or nothing.

    tensors: Meta's names -> torch tensors; two names may share one. Everything is written beside the folder under a
    temporary name and renamed when it is whole. Raises FileExistsError when the folder is there already.
    """
    import torch

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for i in range(shards):
            split = lambda name, t, i=i: t if shard_dim(name) is None else t.chunk(shards, shard_dim(name))[i].clone()
            shard = tensors if shards == 1 else {name: split(name, t) for name, t in tensors.items()}
            torch.save(shard, partial / f"consolidated.{i:02d}.pth")
        (partial / "params.json").write_text(json.dumps(params))
        if tokenizer_model is not None:
            (partial / "tokenizer.model").write_bytes(tokenizer_model)
        files = sorted(p for p in partial.iterdir())
        (partial / "checklist.chk").write_text("".join(f"{digest(f)}  {f.name}\n" for f in files))
        partial.rename(folder)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(e, OSError | RuntimeError):  # torch's error for a full disk is the latter
            free = shutil.disk_usage(folder.parent).free
            raise CheckpointError(
                f"{folder} could not be written, nothing is left of it: {e} ({free:,} bytes free)"
            ) from e
        raise
    return folder


def write_random_checkpoint(folder, params: dict, seed=0, dtype="float32", shards=1, tied=True, tokenizer_model=None):
    """Random weights in the official format: params as in params.json -> the folder.

    Scales are those of a freshly initialised Llama (std 0.02, gains near 1), so activations stay of order one.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    config, tensors = LlamaConfig.from_params(params), {}
    for name, shape in tensor_shapes(config).items():
        if name == "output.weight" and tied:
            tensors[name] = tensors["tok_embeddings.weight"]
        elif "norm" in name:
            tensors[name] = (1 + 0.1 * torch.randn(shape, generator=generator)).to(getattr(torch, dtype))
        else:
            std = 1.0 if name == "tok_embeddings.weight" and not tied else shape[1] ** -0.5
            tensors[name] = (std * torch.randn(shape, generator=generator)).to(getattr(torch, dtype))
    return write_checkpoint(folder, params, tensors, tokenizer_model, shards)
