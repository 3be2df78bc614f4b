"""From a model's name to its folder on this machine."""

import os
from pathlib import Path

from ..llama.config import CheckpointError
from .demo import DEMO_MODEL, demo_folder


def find_checkpoint(name) -> Path:
    """The folder of a model: a folder itself (or its subfolder original/, as in Hugging Face repositories), the demo
    model's (made on first use), or an official name looked up where Meta's downloader puts it.

    Raises CheckpointError with the commands that download it, or with the names there are.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _official_folder(folder)
    if str(name) == DEMO_MODEL:
        return demo_folder()
    if folder.is_absolute() or str(name).startswith((".", "~")):
        raise CheckpointError(f"{folder}: expected a checkpoint folder, found nothing. Check the path.")
    return _find_official(str(name))


def _find_official(name) -> Path:
    from llama_models.sku_list import all_registered_models

    root = Path(os.environ.get("LLAMA_MODELS_CONFIG_DIR", "~/.llama")).expanduser() / "checkpoints"
    plain = lambda n: n.rsplit("/", 1)[-1].lower().replace("llama-3", "llama3")
    repos = {m.descriptor(): m.huggingface_repo for m in all_registered_models()}
    known = {plain(d): d for d in repos if d.startswith(("Llama3", "Llama-3")) and ":" not in d and "Vision" not in d}
    known |= {plain(f.name): f.name for f in (root.iterdir() if root.is_dir() else ()) if f.is_dir()}
    official = known.get(plain(name))
    if official is None:
        raise CheckpointError(
            f"unknown model {name!r}: expected a folder, {DEMO_MODEL!r}, or one of {sorted(known.values())}"
        )
    if not (root / official).is_dir():
        repo = repos[official]
        raise CheckpointError(
            f"{official} is not on this machine: expected the folder {root / official}. After accepting the licence at "
            f"huggingface.co/{repo} run\n"
            f'  hf auth login && hf download {repo} --include "original/*" --local-dir {root / official}\n'
            "or, with the signed URL of Meta's e-mail, on Python 3.11\n"
            f"  pip install llama-stack==0.2.12 && llama model download --source meta --model-id {official}\n"
            f"Without a licence, {DEMO_MODEL!r} works."
        )
    return _official_folder(root / official)


def _official_folder(folder) -> Path:
    for candidate in (folder, folder / "original"):
        if (candidate / "params.json").is_file():
            return candidate
    hint = ""
    if (folder / "config.json").is_file():
        hint = ' This is a Hugging Face folder: download its official files too (--include "original/*").'
    raise CheckpointError(
        f"{folder}: expected params.json and consolidated.00.pth, found {sorted(p.name for p in folder.iterdir())[:8]}."
        + hint
    )
