"""What loading costs: seconds against reading and copying the bytes once, and the peak of anonymous host memory.

    python benchmarks/loading.py                          # random weights of Llama 3.2 1B's shape, both formats
    python benchmarks/loading.py SmolLM2-135M-Instruct    # a model, by name or folder, into both dtypes
    python benchmarks/loading.py --sources bfloat16 --shards 4 --devices 1 4     # from Meta's shards onto a mesh

Each row is a fresh process. Its libraries (torch, and JAX's start) come first and are not counted: 0.2 GB, whatever the
model. "sums" is the first load's time for checking md5, sha256 or CRC-32, once in a process; "load" is without it, a
median of several, beside "read + copy": the same files through a buffer into fresh memory, taken in turns.
"""

import argparse
import ctypes
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from llama_models.sku_list import resolve_model

import entropix_lab as lab

PARAMS = resolve_model("Llama3.2-1B").arch_args
SOURCES = ("bfloat16", "float16", "float32")


def read_and_copy(files):
    """Seconds for reading files through a buffer of 16 MiB and keeping a copy of each bufferful."""
    start, buffer, kept = begin(), np.empty(1 << 24, np.uint8), []
    for file in files:
        with open(file, "rb", buffering=0) as f:
            while n := f.readinto(buffer):
                kept.append(buffer[:n].copy())
    return time.perf_counter() - start


def begin():
    """The time, once malloc has given back what it kept: memory that is there already would be used for nothing."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return time.perf_counter()


def one(folder, dtype, repeats, devices):
    """The figures of one folder and dtype, in this process, on one virtual device or on a mesh of several."""
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = lab.mesh(model=devices) if devices > 1 else None
    folder = lab.checkpoint.find_checkpoint(folder)
    files = [f for f in folder.iterdir() if f.suffix in (".pth", ".safetensors")]
    jnp.zeros(1).block_until_ready()
    with lab.verdict.peak_memory() as peak:
        start = time.perf_counter()
        sums = lab.checkpoint.verify_checksums(folder)
        summed = time.perf_counter() - start
        weights = lab.load_and_convert_weights(folder, dtype, mesh)
    size = lab.weights.nbytes(weights)
    loads, copies = [], []
    del weights
    for _ in range(repeats):
        copies.append(read_and_copy(files))
        start = begin()
        lab.load_and_convert_weights(folder, dtype, mesh)
        loads.append(time.perf_counter() - start)
    return {
        "weights_gb": size / 1e9,
        "peak_ratio": peak["bytes"] / size if peak["bytes"] else float("nan"),
        "sums_s": summed if sums else 0.0,
        "load_s": float(np.median(loads)),
        "copy_s": float(np.median(copies)),
    }


def hugging_face(folder, official):
    """The same weights as one safetensors file. The rows of wq and wk stay Meta's: only the time counts here."""
    from safetensors.torch import save_file

    from entropix_lab.checkpoints.safetensors import config_json, hugging_face_name

    folder.mkdir()
    config = lab.load_config(official)
    (folder / "config.json").write_text(json.dumps(config_json(config, tied=True)))
    tensors = torch.load(official / "consolidated.00.pth", mmap=True)
    del tensors["output.weight"]
    save_file({hugging_face_name(name): t for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def table(folder, label, args):
    for dtype, devices in itertools.product(args.dtypes, args.devices):
        command = [sys.executable, __file__, str(folder), "--one", dtype, "--repeats", str(args.repeats)]
        command += ["--devices", str(devices)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        r = json.loads(done.stdout)
        print(
            f"| {label} | {dtype} | {devices} | {r['weights_gb']:.2f} GB | {r['peak_ratio']:.2f} x | "
            f"{r['sums_s']:.1f} s | {r['load_s']:.2f} s | {r['copy_s']:.2f} s | {r['load_s'] / r['copy_s']:.2f} x |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a name or a folder (default: random, of Llama 3.2 1B's shape)")
    parser.add_argument("--sources", nargs="+", default=SOURCES, choices=SOURCES, help="dtypes of the random files")
    parser.add_argument("--dtypes", nargs="+", default=("bfloat16", "float32"), help="what they are loaded as")
    parser.add_argument("--devices", nargs="+", type=int, default=[1], help="virtual devices along the mesh's model")
    parser.add_argument("--shards", type=int, default=1, help="of the random files in Meta's format")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.model, args.one, args.repeats, *args.devices)))
        return
    print("| files | loaded as | devices | weights | peak | sums, once | load | read + copy | load / copy |")
    print("|---|---|---|---|---|---|---|---|---|")
    if args.model:
        table(args.model, args.model, args)
        return
    for source in args.sources:
        with tempfile.TemporaryDirectory() as tmp:
            official = lab.demo.write_random_checkpoint(Path(tmp) / "1b", PARAMS, dtype=source, shards=args.shards)
            table(official, f"Meta's, {source}", args)
            if args.shards > 1:
                continue
            (official / "checklist.chk").unlink()
            table(official, f"Meta's, {source}, no checklist", args)
            table(hugging_face(Path(tmp) / "hf", official), f"safetensors, {source}", args)


if __name__ == "__main__":
    main()
