"""From a model's name to its folder on this machine, and to what reads it."""

import os
import re
import warnings
from pathlib import Path

from ..llama.config import CheckpointError
from . import meta, safetensors
from .demo import DEMO_MODEL, demo_folder


def find_checkpoint(name) -> Path:
    """The folder of a model: a folder itself, the demo model's (made on first use), or a name looked up where Meta's
    downloader and Hugging Face's cache keep their files.

    name: a folder; an official name in any usual spelling ("Llama3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct");
    or "organisation/name" of anything in Hugging Face's cache, with "@revision" (a branch, a tag, a commit) if wanted.
    Where both formats are there, Meta's is taken, also from the subfolder original/ of a Hugging Face folder.
    Raises CheckpointError with the commands that download it, or with the reason why it cannot be read.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _known(folder)
    if str(name) == DEMO_MODEL:
        return demo_folder()
    if folder.is_absolute() or str(name).startswith((".", "~")):
        raise CheckpointError(f"{folder}: expected a checkpoint folder, found nothing. Check the path.")
    return _find_by_name(str(name))


def reader_of(folder):
    """The module that reads a folder of find_checkpoint: meta or safetensors, alike in read_config and open_tensors."""
    return safetensors if (folder / "config.json").is_file() and not _is_official(folder) else meta


def read_tensors(folder, config):
    """Yield (Meta's name, host array in Meta's layout) for every tensor of a folder of either format: copy what you
    keep."""
    for tensor in reader_of(folder).open_tensors(folder, config):
        yield tensor.name, tensor.read()


def _is_official(folder) -> bool:
    return (folder / "params.json").is_file() and any(folder.glob("consolidated.*.pth"))


def _known(folder) -> Path:
    candidates = (folder, folder / "original")
    known = [c for c in candidates if _is_official(c)]
    # of a folder without weights, its reader says what is missing
    known += [c for c in candidates if (c / "config.json").is_file() or (c / "params.json").is_file()]
    if known:
        return known[0]
    raise CheckpointError(
        f"{folder}: expected params.json and consolidated.00.pth (Meta's format), or config.json and model.safetensors "
        f"(Hugging Face's), found {sorted(p.name for p in folder.iterdir())[:8]}."
    )


def _reads(folder) -> bool:
    try:
        folder = _known(folder)
        return bool(reader_of(folder).read_config(folder))
    except CheckpointError:
        return False


def _plain(name) -> str:
    """One spelling of many: "meta-llama/Meta-Llama-3-8B" and "Llama3-8b" are "llama3-8b"."""
    return name.rsplit("/", 1)[-1].lower().removeprefix("meta-").replace("llama-3", "llama3").replace(":", "-")


def _find_by_name(name) -> Path:
    repo, _, revision = name.partition("@")
    root = Path(os.environ.get("LLAMA_MODELS_CONFIG_DIR", "~/.llama")).expanduser() / "checkpoints"
    may_be_official = "/" not in repo or repo.startswith("meta-llama/")
    metas = sorted(root.glob("*")) if may_be_official and not revision else ()
    folder = next((f for f in metas if f.is_dir() and _plain(f.name) == _plain(repo)), None) or _cached(repo, revision)
    if folder and (not may_be_official or _plain(repo).startswith("llama3") and _reads(folder)):
        return _known(folder)
    from llama_models.sku_list import all_registered_models  # only for other spellings, and to say what is wrong

    # of two namesakes, the one that can be read
    models = sorted(all_registered_models(), key=lambda m: not _why_not(m))
    models = {_plain(spelling): m for m in models for spelling in (m.huggingface_repo, m.descriptor())}
    official = models.get(_plain(repo)) if may_be_official else None
    if official and (reason := _why_not(official)):
        raise CheckpointError(f"{name}: {reason}. Expected a text model of the Llama 3 family in bfloat16.")
    repos = [official.huggingface_repo, official.huggingface_repo.replace("/", "/Meta-")] if official else []
    if folder := next(filter(None, (folder, *(_cached(candidate, revision) for candidate in repos))), None):
        return _known(folder)
    if official:
        repo, model_id = repos[0], official.descriptor()
        folder = root / model_id.replace(":", "-")
        raise CheckpointError(
            f"{name} is not on this machine: expected it in Hugging Face's cache or in {folder}. After accepting the "
            f"licence at huggingface.co/{repo} run\n"
            f'  hf auth login && hf download {repo} --exclude "original/*"\n'
            "or, for Meta's own files,\n"
            f'  hf auth login && hf download {repo} --include "original/*" --local-dir {folder}\n'
            "or, with the signed URL of Meta's e-mail, on Python 3.11\n"
            f"  pip install llama-stack==0.2.12 && llama model download --source meta --model-id {model_id}\n"
            f"Without a licence, {DEMO_MODEL!r} works."
        )
    if "/" in repo:
        raise CheckpointError(f"{name} is not in Hugging Face's cache. Download it: hf download {repo}")
    raise CheckpointError(
        f"unknown model {name!r}: expected a folder, {DEMO_MODEL!r}, the organisation/name of a repository in Hugging "
        f"Face's cache, or one of {sorted({m.descriptor() for m in models.values() if not _why_not(m)})}"
    )


def _why_not(model) -> str:
    """Why a model of llama_models' list cannot be read; "" if it can."""
    if model.quantization_format.value != "bf16":
        lora = " with LoRA adapters" if "lora_args" in model.arch_args else ""
        return f"its weights are {model.quantization_format.value}{lora}: quantised files hold no plain weights"
    if "vision_chunk_size" in model.arch_args:
        return "it reads images, and only text models are supported"
    if not re.match(r"llama3|llama-guard-[23]", _plain(model.descriptor())):
        return "it is not of the Llama 3 family"
    return ""


def _cached(repo, revision) -> Path | None:
    """The snapshot folder of a repository in Hugging Face's cache, without a look at the network."""
    with warnings.catch_warnings():  # of a notebook without widgets, for its progress bars
        warnings.filterwarnings("ignore", "IProgress not found")
        from huggingface_hub import try_to_load_from_cache

    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        for file in ("config.json", "original/params.json"):
            found = try_to_load_from_cache(repo, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found.removesuffix(file))
    return None
