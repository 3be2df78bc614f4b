"""Checkpoints, written: of a Model in either format, or of random tensors of any Llama's shape in Meta's."""

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np

from ..llama.config import CheckpointError, LlamaConfig
from ..llama.sharding import shard_dim
from ..llama.weights import by_name
from .safetensors import config_json, hugging_face_name, to_halves
from .sums import digest
from .tensors import as_torch, tensor_shapes

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

    config = LlamaConfig.from_params(params)
    if shards > 1:
        for name, shape in tensor_shapes(config).items():
            if config.n_kv_heads % shards or shape[shard_dim(name) or 0] % shards:
                raise ValueError(f"{name} {shape} of {config.n_kv_heads} key/value heads cannot be split into {shards}")
    with _new_folder(folder) as partial:
        for i in range(shards):
            split = lambda name, t, i=i: t if shard_dim(name) is None else t.chunk(shards, shard_dim(name))[i].clone()
            shard = tensors if shards == 1 else {name: split(name, t) for name, t in tensors.items()}
            torch.save(shard, partial / f"consolidated.{i:02d}.pth")
        (partial / "params.json").write_text(json.dumps(params))
        if tokenizer_model is not None:
            (partial / "tokenizer.model").write_bytes(tokenizer_model)
        files = sorted(partial.iterdir())
        (partial / "checklist.chk").write_text("".join(f"{digest(f)}  {f.name}\n" for f in files))
    return Path(folder)


def save_official(model, folder, shards=1) -> Path:
    """A Model as a folder that Meta's code loads, with the bits of its weights (in its dtype) -> the folder.

    tokenizer.model is written too. params.json cannot say how RoPE is scaled: where the model's numbers are not those
    of Meta's code, a warning names them. Raises FileExistsError when the folder is there already, ValueError for a
    number of shards that does not divide the heads, CheckpointError where tokenizer.model cannot hold the tokenizer.
    """
    if model.config.unlike_metas_code:
        warnings.warn(f"params.json cannot say that {model.config.unlike_metas_code}", stacklevel=2)
    tensors = {}
    for name, x in by_name(model.weights).items():
        if name == "output.weight" and model.weights.output is model.weights.tok_embeddings:
            tensors[name] = tensors["tok_embeddings.weight"]
        else:
            tensors[name] = as_torch(np.array(x))
    tokenizer = model.tokenizer.tokenizer_model() if model.tokenizer else None
    return write_checkpoint(folder, model.config.params(), tensors, tokenizer, shards)


def save_hugging_face(model, folder, shards=1) -> Path:
    """A Model as a Hugging Face folder: config.json, generation_config.json, model*.safetensors, tokenizer.model -> the
    folder. The bits are those of its weights, the order of wq and wk Hugging Face's. Raises as save_official does."""
    from safetensors.numpy import save_file

    tied, arrays = model.weights.output is model.weights.tok_embeddings, {}
    for name, x in by_name(model.weights).items():
        if not (tied and name == "output.weight"):
            x = np.asarray(x)
            halves = name.endswith(("wq.weight", "wk.weight"))
            x = to_halves(x, model.config.head_dim) if halves else x
            arrays[hugging_face_name(name)] = np.ascontiguousarray(x)
    config = config_json(model.config, tied) | {"dtype": model.dtype}
    with _new_folder(folder) as partial:
        if model.tokenizer:
            config["eos_token_id"] = list(model.tokenizer.stop_tokens)
            (partial / "tokenizer.model").write_bytes(model.tokenizer.tokenizer_model())
            generation = {"bos_token_id": model.tokenizer.bos_id, "eos_token_id": config["eos_token_id"]}
            (partial / "generation_config.json").write_text(json.dumps(generation))
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        names, index = list(arrays), {}
        for i in range(shards):
            part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
            file = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            save_file({name: arrays[name] for name in part}, partial / file, metadata={"format": "pt"})
            index |= dict.fromkeys(part, file)
        if shards > 1:
            total = sum(x.nbytes for x in arrays.values())
            whole = {"metadata": {"total_size": total}, "weight_map": index}
            (partial / "model.safetensors.index.json").write_text(json.dumps(whole))
    return Path(folder)


@contextlib.contextmanager
def _new_folder(folder):
    """A folder under a temporary name, which gets its own when everything is in it; after an error nothing is left."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        # full disks: torch's error is the second, and safetensors has its own
        if isinstance(e, OSError | RuntimeError) or type(e).__name__ == "SafetensorError":
            free = shutil.disk_usage(folder.parent).free
            raise CheckpointError(
                f"{folder} could not be written, nothing is left of it: {e} ({free:,} bytes free)"
            ) from e
        raise


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
