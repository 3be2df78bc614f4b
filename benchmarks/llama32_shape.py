"""The comparison at a real Llama's size: random weights of its exact shape, in the official format.

    python benchmarks/llama32_shape.py Llama3.2-1B float32
    python benchmarks/llama32_shape.py Llama3.1-8B bfloat16 --layers 2 --devices 4      # virtual ones of a CPU

Writes the checkpoint (bfloat16, as Meta's) into a temporary folder, runs Meta's model and ours one after the other, and
prints seconds, the peak of anonymous host memory (on a GPU, of its own), and the verdict.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import llama_models.llama3
import numpy as np
from llama_models.sku_list import resolve_model

import entropix_lab as lab


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="Llama3.2-1B", help="a name that llama-models knows")
    parser.add_argument("dtype", nargs="?", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--layers", type=int, help="how many of the model's layers (default: all)")
    parser.add_argument("--devices", type=int, default=1, help="virtual devices along the mesh's model")
    parser.add_argument("--folder", type=Path, help="where to keep the checkpoint (default: a temporary folder)")
    args = parser.parse_args()
    # a virtual device that waits for the others keeps a thread of XLA's, of which there are as many as cores
    os.environ.setdefault("NPROC", str(max(16, 4 * args.devices)))
    jax.config.update("jax_num_cpu_devices", args.devices)
    mesh = lab.mesh(model=args.devices) if args.devices > 1 else None
    with tempfile.TemporaryDirectory() as tmp:
        folder = (args.folder or Path(tmp)) / f"{args.model}-random"
        if not folder.exists():
            params = resolve_model(args.model).arch_args
            params |= {"n_layers": args.layers} if args.layers else {}
            tied = args.model.startswith("Llama3.2")
            tokenizer = (Path(llama_models.llama3.__file__).parent / "tokenizer.model").read_bytes()
            lab.demo.write_random_checkpoint(folder, params, 0, "bfloat16", 1, tied, tokenizer)
        size = (folder / "consolidated.00.pth").stat().st_size
        with lab.verdict.peak_memory() as peak:
            start = time.perf_counter()
            model = lab.load_model(folder, args.dtype, mesh)
            loaded = time.perf_counter()
            tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, args.tokens))
            report = lab.compare(model, folder, tokens)
            compared = time.perf_counter()
        row = {
            "model": folder.name,
            "dtype": args.dtype,
            "tokens": args.tokens,
            "layers": model.config.n_layers,
            "devices": args.devices,
            "file_gb": round(size / 1e9, 2),
            "load_s": round(loaded - start, 1),
            "compare_s": round(compared - loaded, 1),
            "peak_gb": peak["bytes"] and round(peak["bytes"] / 1e9, 2),
            "logits_rel_l2_worst": report["output"].rel_l2_worst,
            "device": jax.devices()[0].device_kind,
        }
        print(json.dumps(row))
        print(report.environment)
        print(report.verdict)


if __name__ == "__main__":
    main()
