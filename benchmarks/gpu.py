"""What a GPU has to settle, in one command of at most ten minutes: outputs/gpu.json.

    python benchmarks/gpu.py            # an NVIDIA GPU of 24 GB or more; 3 GB of disk for weights that it writes itself
    python benchmarks/gpu.py --tiny     # the same at a tiny size on whatever there is, for trying the script

Needs jax (with CUDA), torch, numpy, llama-models, fairscale, tiktoken, tqdm and platformdirs, and this package on the
path; nothing else, no download. Weights are random, at the exact shapes of Llama 3.2 1B and 3B: speed and rounding do
not ask what was trained. Every point is measured in a process of its own and survives the failure of another, be it a
crash (its "error" is then in the JSON); the file is written after each:

machine, products: versions, bytes per second, rates of products in bfloat16, float32 (with and without TF32), float64
tiny_compare: a tiny model against Meta's code, both dtypes, both modes        compare: the same at 1B's shape
precision: what TF32 would do to the logits of xfmr, and that the default precision does nothing to ours
decode: tokens per second, and the time that the bytes to be read would take as a share of a token's
prefill: seconds and share of the peak rate, the first token cold and warm     samplers: microseconds at 128,256 tokens
programs: how many are compiled over 300 tokens                                repeat: the same bits twice
sums: the cost of float32 sums kept to the end
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from llama_models.sku_list import resolve_model

import entropix_lab as lab
from entropix_lab.checkpoints.write import TINY, write_random_checkpoint
from entropix_lab.llama.sharding import SplitLayerWeights
from entropix_lab.llama.weights import take_layer
from entropix_lab.proof import truth
from entropix_lab.timing import median_seconds

LIMIT, GRACE = 510, 60  # seconds after which nothing further begins; and for what has begun, until it is stopped


class Sizes:
    """What is measured, at full size or tiny."""

    def __init__(self, tiny):
        self.started = time.perf_counter()
        self.models = (
            {"tiny": TINY | dict(vocab_size=512)}
            if tiny
            else {size: resolve_model(f"Llama3.2-{size}").arch_args for size in ("1B", "3B")}
        )
        self.first = next(iter(self.models))
        self.square = 256 if tiny else 8192
        self.megabytes = 8 if tiny else 4096
        self.batches, self.positions = ((1, 2), (16,)) if tiny else ((1, 8, 64), (64, 2000))
        self.prompts = (32, 64) if tiny else (512, 2048, 8192)
        self.new_tokens = 20 if tiny else 300
        self.vocabulary = 1000 if tiny else 128256
        self.compared = 8 if tiny else 50

    def left(self):
        return LIMIT - (time.perf_counter() - self.started)  # one clock for all processes of a machine


def random_model(params, dtype, seed=0):
    """A Model of random weights that are made on the device."""
    config, keys = lab.LlamaConfig.from_params(params), iter(jax.random.split(jax.random.key(seed), 1 << 12))
    make = jax.jit(lambda key, shape: jax.random.normal(key, shape, dtype), static_argnums=1)
    arrays = {}
    for name, shape in lab.checkpoint.tensor_shapes(config).items():
        scale = 1 if len(shape) == 1 else shape[1] ** -0.5
        arrays[name] = (
            jnp.ones(shape, dtype) if len(shape) == 1 else make(next(keys), shape) * jnp.asarray(scale, dtype)
        )
    embeddings = arrays["tok_embeddings.weight"]  # tied, as in 1B and 3B
    layers = tuple(take_layer(arrays, i) for i in range(config.n_layers))
    weights = lab.XfmrWeights(embeddings, arrays["norm.weight"], embeddings, layers)
    return lab.Model(config, weights, None, Path("random"))


def tokens(model, *shape):
    return np.random.default_rng(0).integers(3, model.config.vocab_size, shape)


def attempt(sizes, measure):
    """What measure() returns, a dict, or why there is nothing: one size that does not fit leaves the others."""
    if sizes.left() < 0:
        return {"error": "not begun: the time was up"}
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def alone(sizes, point):
    """What a point returns, measured in a process of its own: neither a crash nor memory that it keeps is another's."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, sizes, point))
    process.start()
    sender.close()
    try:
        if not receiver.poll(sizes.left() + GRACE):
            raise TimeoutError("stopped: the time was up")
        result = receiver.recv()
        process.join(GRACE)
        return result
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with {process.exitcode}") from None
    finally:
        process.kill()


def _send(sender, sizes, point):
    sender.send(attempt(sizes, lambda: point(sizes)))


def machine(sizes):
    """Versions, the device, and bytes per second of a product that reads a matrix once."""
    device = jax.devices()[0]
    where = {"environment": lab.verdict.environment(), "device": device.device_kind, "platform": device.platform}
    return where | {"bytes_per_s": lab.timing.memory_bandwidth(sizes.megabytes), "memory": device.memory_stats()}


def products(sizes):
    """Operations per second of square products."""
    n, rates = sizes.square, {}
    kinds = {
        "bfloat16": ("bfloat16", None),
        "float32": ("float32", "highest"),
        "float32 as TF32": ("float32", "default"),
    }
    for name, (dtype, precision) in (kinds | {"float64": ("float64", None)}).items():
        with jax.enable_x64(dtype == "float64"):
            size = n // 4 if dtype == "float64" else n
            x = jax.random.normal(jax.random.key(0), (size, size), dtype)
            product = jax.jit(lambda x, p=precision: jnp.matmul(x, x, precision=p))
            rates[name] = 2 * size**3 / median_seconds(lambda: product(x), 3)  # noqa: B023
    return rates


def compared(folder, dtype, length, mode="prefill"):
    """A comparison with Meta's code, and what it took of the memory of both frameworks: of JAX's device (on a CPU, of
    the process), and what torch had on a GPU."""
    import torch

    torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
    with lab.verdict.peak_memory() as peak:
        model = lab.load_model(folder, dtype)
        prompt, started = tokens(model, 1, length), time.perf_counter()
        truth.forward(model.weights, model.config, prompt)
        truth_s, started = time.perf_counter() - started, time.perf_counter()
        report = lab.compare(model, folder, prompt, mode=mode)
        seconds = time.perf_counter() - started
    return {
        "verdict": report.verdict,
        "passed": report.passed,
        "floors": {row.tap: row.accumulated.floor for row in report.rows[-2:]},
        "nearest_to_limit": max(row.limit_ratio for row in report.rows),
        "seconds": seconds,
        "truth_s": truth_s,
        "peak_bytes": peak["bytes"],
        "torch_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def tiny_compare(sizes):
    with tempfile.TemporaryDirectory() as tmp:
        found = {}
        for dtype in ("float32", "bfloat16"):
            folder = write_random_checkpoint(Path(tmp) / dtype, TINY, dtype=dtype)
            for mode in ("prefill", "cached"):
                found[f"{dtype} {mode}"] = compared(folder, dtype, 11, mode)
        return found


def compare(sizes):
    with tempfile.TemporaryDirectory() as tmp:
        started = time.perf_counter()
        folder = write_random_checkpoint(Path(tmp) / "weights", sizes.models[sizes.first], dtype="bfloat16")
        found = {"write_s": time.perf_counter() - started}
        for dtype in ("bfloat16", "float32"):
            found[dtype] = attempt(sizes, lambda: compared(folder, dtype, sizes.compared))  # noqa: B023
        return found


def precision(sizes):
    """Largest difference of logits and entropies, as a share of the largest logit and in nats: our forward under
    another default precision, which must not matter, and with its own taken away, which is what TF32 does."""
    from entropix_lab.llama import model as forward

    model = random_model(sizes.models[sizes.first], "float32")
    prompt = tokens(model, 1, sizes.prompts[0])

    def logits():
        cache = lab.KVCache.new(model.config, 1, prompt.shape[1], "float32")
        run = jax.jit(lambda w, c: lab.xfmr(w, model.config, jnp.asarray(prompt), 0, c)[0])
        return np.asarray(run(model.weights, cache))

    ours, trace = logits(), lab.trace_text(model, prompt).entropy
    away = lambda x: float(np.abs(x - ours).max() / np.abs(ours).max())
    with jax.default_matmul_precision("bfloat16"):
        default, text = logits(), lab.trace_text(model, prompt).entropy
    highest, forward.HIGHEST = forward.HIGHEST, jax.lax.Precision.DEFAULT
    try:
        without = logits()
    finally:
        forward.HIGHEST = highest
    return {
        "default_changed": away(default),
        "trace_changed_nats": float(np.abs(text - trace).max()),
        "tf32": away(without),
    }


def decode(sizes):
    """Seconds for a token, and the bytes that it must read over the bandwidth as a share of them."""
    bandwidth, found = lab.timing.memory_bandwidth(sizes.megabytes), {}

    def one(model, batch, position):
        (seconds,) = lab.timing.seconds_per_token(model, [position], batch)
        _, read = lab.timing.work(model, position, batch)
        return dict(tokens_per_s=batch / seconds, ms=1e3 * seconds, share_of_bandwidth=read / bandwidth / seconds)

    for name, params in sizes.models.items():
        for dtype, batches in (("bfloat16", sizes.batches), ("float32", sizes.batches[:1])):
            model = random_model(params, dtype)
            for batch, position in itertools.product(batches, sizes.positions):
                at = f"{name} {dtype} batch {batch} after {position}"
                found[at] = attempt(sizes, lambda: one(model, batch, position))  # noqa: B023
            rate = lambda: dict(tokens_per_s=lab.timing.rate(model, 1, sizes.positions[0], 32, 2))  # noqa: B023
            found[f"{name} {dtype} generate"] = attempt(sizes, rate)  # with the host between the steps
            model = None  # before the next is made
    return found


def sums(sizes):
    """What it costs on one device to keep the sums of wo and w2 in float32 to the end, as several devices do."""
    model, found = random_model(sizes.models[sizes.first], "bfloat16"), {}
    layers = tuple(SplitLayerWeights(*w) for w in model.weights.layer_weights)
    for name, weights in (("bfloat16", model.weights), ("float32", model.weights._replace(layer_weights=layers))):
        timed = dataclasses.replace(model, weights=weights)
        seconds = lab.timing.seconds_per_token
        found[f"{name} token"] = float(seconds(timed, [sizes.positions[0]])[0])
        found[f"{name} prompt"] = float(seconds(timed, [sizes.prompts[1]], cached=False)[0])
    return found


def prefill(sizes):
    model, found = random_model(sizes.models[sizes.first], "bfloat16"), {}
    n, peak = sizes.square, jax.random.normal(jax.random.key(0), (sizes.square,) * 2, "bfloat16")
    product = jax.jit(lambda x: x @ x)
    peak = 2 * n**3 / median_seconds(lambda: product(peak), 3)

    def one(length):
        once = lambda: lab.generate(model, tokens(model, 1, length), 1, stop=(), max_seq_len=2 * length)
        cold, warm = (once()[0].timing["first_token_s"] for _ in range(2))
        (seconds,) = lab.timing.seconds_per_token(model, [length], cached=False, repeats=3)
        operations, _ = lab.timing.work(model, 0, 1, length)
        share = operations / peak / seconds
        return dict(cold_s=cold, warm_s=warm, program_s=float(seconds), share_of_peak=float(share))

    for length in sizes.prompts:
        found[length] = attempt(sizes, lambda: one(length))  # noqa: B023
    return found


def samplers(sizes):
    V, found = sizes.vocabulary, {}
    kinds = {
        "greedy": lab.samplers.greedy(),
        "top_p": lab.samplers.top_p(0.9),
        "top_k": lab.samplers.top_k(40),
        "adaptive": lab.samplers.adaptive(clarifying=None),
        "dirichlet": lab.samplers.dirichlet(V),
    }
    for batch in (1, 8):
        logits = 3 * jax.random.normal(jax.random.key(0), (batch, V))
        keys = jax.random.split(jax.random.key(1), batch)
        H, varentropy = lab.entropy_varentropy(logits)
        for name, sampler in kinds.items():
            shape = lambda needed: (batch, 16, 32) if needed.startswith("attention") else (batch, 16)  # noqa: B023
            needs = {needed: jnp.ones(shape(needed)) for needed in getattr(sampler, "needs", ())}
            metrics = {"entropy": H, "varentropy": varentropy} | needs
            state, run = sampler.init(batch), jax.jit(lambda s, x, m, st, k: s(x, m, st, k))
            call = lambda: run(sampler, logits, metrics, state, keys)  # noqa: B023
            found[f"{name} batch {batch}"] = 1e6 * median_seconds(call, 20)
    return found


def programs(sizes):
    model = random_model(sizes.models[sizes.first], "bfloat16")
    before = lab.timing.programs()
    out = lab.generate(model, tokens(model, 1, 10), sizes.new_tokens, stop=())
    return {"programs": lab.timing.programs() - before, "tokens": len(out[0].tokens)}


def repeat(sizes):
    found = {}
    for dtype in ("bfloat16", "float32"):
        model = random_model(sizes.models[sizes.first], dtype)
        run = lambda: lab.generate(model, tokens(model, 2, 20), 20, lab.samplers.top_p(0.9), stop=())  # noqa: B023
        found[dtype] = all(
            (a.logprobs == b.logprobs).all() and (a.tokens == b.tokens).all() for a, b in zip(run(), run(), strict=True)
        )
    return found


# what the next reader needs most comes first, should the time be up
POINTS = (machine, products, tiny_compare, precision, repeat, compare, decode, prefill, samplers, programs, sums)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on whatever there is: outputs/gpu_tiny.json")
    names = [p.__name__ for p in POINTS]
    parser.add_argument("--only", nargs="+", choices=names, help="some points, and machine: outputs/gpu_part.json")
    parser.add_argument(
        "--outputs", type=lambda x: Path(x).absolute(), default=lab.verdict.outputs_dir(), help="the folder to write to"
    )
    args = parser.parse_args()
    sizes, found = Sizes(args.tiny), {}
    name = "gpu_tiny.json" if args.tiny else "gpu_part.json" if args.only else "gpu.json"
    for point in POINTS:
        if args.only and point.__name__ not in ["machine", *args.only]:
            continue
        begun = time.perf_counter()
        result = attempt(sizes, lambda: alone(sizes, point))  # noqa: B023
        found[point.__name__] = result | {"took_s": time.perf_counter() - begun}
        print(point.__name__, found[point.__name__], flush=True)
        if point is machine and result.get("platform") == "cpu" and not args.tiny:
            sys.exit("JAX found no GPU, and on a CPU this takes hours. For trying the script: --tiny")
        # written after every point: what was measured stays if the machine goes
        file = lab.verdict.write_json(args.outputs / name, found)
    failed = [name for name, result in found.items() if '"error"' in json.dumps(result)]
    took, good = time.perf_counter() - sizes.started, len(found) - len(failed)
    print(f"{file}: {good} of {len(found)} points whole in {took:.0f} s; something failed in: {failed}")


if __name__ == "__main__":
    main()
