"""This project beside its peers: the same weights, the same dtype, the same prompts, interleaved in one process.

    pip install -e ".[peers]"           # transformers and llama-cpp-python; a peer that is not installed is left out
    python benchmarks/peers.py --json   # float32; --dtype bfloat16; --batches 1 --positions 64 for a look

For each batch and position: milliseconds to the first token, tokens per second of reading the prompt and of decoding
after it (medians over rounds in which the peers take turns), and their ratio to ours; before that, seconds to load and
the anonymous memory that loading and one generation take. Each peer reads with the number of threads with which it
reads a short prompt fastest, and decodes with the one that is fastest in that case; ours are XLA's, one to a processor.
--json keeps the rows in outputs/peers.json, in the place of older rows of the same dtype, batch, position and peer,
which stay there as "earlier": what takes long can be run in parts. "machine" is that of the newest rows. Each row has
its date and what one large product read of the memory just before, because a shared machine is not always the same.
"""

import argparse
import ctypes
import datetime
import json
import os
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np

import entropix_lab as lab
from entropix_lab.generation.step import steps
from entropix_lab.proof.reference import _single_rank

MOST = 4096


class Ours:
    """start(tokens [B,T]) gives the first tokens, decode(n) the next n, each row its own. rows: the most that will be
    asked for; longest: tokens of the longest prompt; more: the most that are decoded after one."""

    name = "entropix_lab"

    def __init__(self, path, dtype, rows, longest, more):
        self.model = lab.load_model(path, dtype)

    def use(self, threads):
        """XLA has one thread to a processor, and no setting for it."""

    def start(self, tokens):
        lengths, seeds = np.full(len(tokens), tokens.shape[1], np.int32), [0] * len(tokens)
        self.steps = steps(self.model, list(tokens), lengths, MOST, lab.samplers.greedy(), seeds, 2 * MOST)
        return self.decode(1)[0]

    def decode(self, n):
        return [jax.device_get(next(self.steps))["token"] for _ in range(n)]


def torch_threads(threads):
    import torch

    torch.set_num_threads(threads)


class Meta:
    name = "Meta's reference"

    def __init__(self, path, dtype, rows, longest, more):
        self.reference = lab.load_reference(path, dtype, device="cpu", max_seq_len=longest + more, max_batch_size=rows)

    use = staticmethod(torch_threads)

    def start(self, tokens):
        self.position = 0
        return self._step(tokens)

    def _step(self, tokens):
        self.last = self.reference.logits(tokens, self.position)[:, -1].argmax(-1)
        self.position += tokens.shape[1]
        return self.last

    def decode(self, n):
        with _single_rank():
            return [self._step(self.last[:, None]) for _ in range(n)]


class Transformers:
    """As its generate runs by default: a cache that grows, no compilation."""

    name = "transformers"
    use = staticmethod(torch_threads)

    def __init__(self, path, dtype, rows, longest, more):
        self.model = lab.hugging_face.load_hugging_face(path, dtype, attn_implementation=None)
        self.forward = self.model

    def cache(self, length):
        return None

    def start(self, tokens):
        self.position, self.held = 0, self.cache(tokens.shape[1])
        return self._step(tokens, self.model)

    def _step(self, tokens, forward):
        import torch

        with torch.inference_mode():
            ids = torch.tensor(tokens, dtype=torch.long)
            at = torch.arange(self.position, self.position + ids.shape[1])
            out = forward(
                ids, past_key_values=self.held, use_cache=True, logits_to_keep=1, position_ids=at[None].expand_as(ids)
            )
        self.position += ids.shape[1]
        self.held, self.last = out.past_key_values, out.logits[:, -1].argmax(-1).numpy()
        return self.last

    def decode(self, n):
        return [self._step(self.last[:, None], self.forward) for _ in range(n)]


class CompiledTransformers(Transformers):
    """With its static cache, and torch.compile for single tokens."""

    name = "transformers, compiled"

    def __init__(self, path, dtype, rows, longest, more):
        import torch

        super().__init__(path, dtype, rows, longest, more)
        self.more, self.forward = more, torch.compile(self.model, dynamic=False)
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # in place of running uncompiled, without a word

    def cache(self, length):
        from transformers import StaticCache

        # every step reads all slots: those of the case, not of the longest
        return StaticCache(config=self.model.config, max_cache_len=length + self.more)


class LlamaCpp:
    name = "llama.cpp"
    BATCH = 2048  # tokens to a call

    def __init__(self, path, dtype, rows, longest, more):
        import llama_cpp

        self.lib = llama_cpp
        file = Path(tempfile.mkdtemp()) / "model.gguf"
        write_gguf(path, file, dtype)
        self.llama = llama_cpp.Llama(str(file), n_ctx=64, verbose=False)
        file.unlink()
        params = self.llama.context_params  # a context of our own: the class has one for a single sequence
        params.n_ctx, params.n_batch, params.n_ubatch = rows * (longest + more), self.BATCH, 512
        # a stream of cache to each row: llama.h advises it for rows that share no prefix
        params.n_seq_max, params.kv_unified = rows, False
        self.context = llama_cpp.llama_init_from_model(self.llama._model.model, params)
        self.vocab = lab.load_config(path).vocab_size

    def use(self, threads):
        self.lib.llama_set_n_threads(self.context, threads, threads)

    def start(self, tokens):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.position, firsts = tokens.shape[1], []
        together = max(1, self.BATCH // self.position)  # rows to a call
        for row in range(0, len(tokens), together):
            each = [(row + r, ids) for r, ids in enumerate(tokens[row : row + together])]
            firsts += self._eval([(int(t), i, r, i == len(ids) - 1) for r, ids in each for i, t in enumerate(ids)])
        self.last = np.array(firsts)
        return self.last

    def _eval(self, entries):
        batch = self.lib.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = row
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        wanted = [i for i, e in enumerate(entries) if e[3]]
        pointers = [self.lib.llama_get_logits_ith(self.context, i) for i in wanted]
        best = [
            np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(ctypes.c_float)), (self.vocab,)).argmax()
            for p in pointers
        ]
        self.lib.llama_batch_free(batch)
        return best

    def decode(self, n):
        steps = []
        for _ in range(n):
            self.last = np.array(self._eval([(int(t), self.position, row, True) for row, t in enumerate(self.last)]))
            self.position += 1
            steps.append(self.last)
        return steps


def write_gguf(path, file, dtype):
    """The weights of an official folder as GGUF, for llama.cpp (whose RoPE takes Meta's interleaved q and k)."""
    import gguf

    c = lab.load_config(path)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(2 * MOST)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.ffn_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.n_layers)
    for name, array in lab.checkpoint.read_tensors(path, c):
        if name != "output.weight":  # tied
            array, name = np.asarray(array, np.float32), names.get_name(name, [".weight"])
            if dtype == "bfloat16" and array.ndim == 2:
                half = gguf.quantize(array, gguf.GGMLQuantizationType.BF16)
                writer.add_tensor(name, half, raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


KINDS = (Ours, Meta, Transformers, CompiledTransformers, LlamaCpp)


THREADS = sorted({*(2**i for i in range(8) if 2**i <= os.cpu_count()), os.cpu_count()})


def best_threads(peer, run) -> int:
    """The number of threads with which peer runs fastest. It runs three times with each."""
    seconds = {}
    for threads in THREADS:
        peer.use(threads)
        run()
        seconds[threads] = min(timed(run) for _ in range(2))
    return min(seconds, key=seconds.get)


def timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def machine() -> dict:
    """What the figures belong to."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {}
    for package in ("transformers", "llama-cpp-python"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": models[0].partition(":")[2].strip(),
        "processors": os.cpu_count(),
        "environment": lab.verdict.environment(),
        **versions,
    }


def measured(peers, tokens, rounds, count) -> list[dict]:
    """A row to each peer, for prompts of tokens [B,T]."""
    batch, position = tokens.shape
    first, rates, start = {}, {p.name: [] for p in peers}, {}
    for peer in peers:
        peer.use(peer.reading)
        peer.start(tokens)  # compiles, and warms caches
        peer.decode(4)
        first[peer.name] = [timed(lambda peer=peer: start.update({peer.name: peer.start(tokens)}))]
        while len(first[peer.name]) < 5 and sum(first[peer.name]) < 4:
            first[peer.name].append(timed(lambda peer=peer: peer.start(tokens)))
        best = best_threads(peer, lambda peer=peer: peer.decode(4))  # ours tries too, so that all are at one position
        peer.decoding = os.cpu_count() if isinstance(peer, Ours) else best
        peer.use(peer.decoding)
        peer.decode(2)
    for _ in range(rounds):
        for peer in peers:
            rates[peer.name].append(batch * count / timed(lambda peer=peer: peer.decode(count)))
    ours = peers[0].name
    return [
        {
            "peer": peer.name,
            "batch": batch,
            "position": position,
            "prompt_threads": peer.reading,
            "threads": peer.decoding,
            "first_token_ms": round(1e3 * float(np.median(first[peer.name])), 1),
            "prefill_tokens_per_s": round(batch * position / float(np.median(first[peer.name])), 1),
            "tokens_per_s": round(float(np.median(rates[peer.name])), 1),
            "ours_over_theirs": round(float(np.median(np.divide(rates[ours], rates[peer.name]))), 2),
            "same_first_token": bool((start[peer.name] == start[ours]).all()),
        }
        for peer in peers
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="timed tokens a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--positions", type=int, nargs="+", default=[64, 512, 2000])
    parser.add_argument("--peers", nargs="+", default=[kind.name for kind in KINDS[1:]], help="those beside ours")
    parser.add_argument("--json", action="store_true", help="keep the rows in outputs/peers.json")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="a name or a folder")
    parser.add_argument(
        "--outputs", type=lambda x: Path(x).absolute(), default=lab.verdict.outputs_dir(), help="the folder to write to"
    )
    args = parser.parse_args()
    path = lab.checkpoint.find_checkpoint(args.model)
    vocabulary = lab.load_config(path).vocab_size
    peers, rng = [], np.random.default_rng(0)
    where = machine()
    when = {"date": datetime.date.today().isoformat(), "gb_per_s": round(lab.timing.memory_bandwidth() / 1e9, 1)}
    print(json.dumps(where | when))
    more = args.rounds * args.tokens + 12 * len(THREADS) + 8
    for kind in (k for k in KINDS if k is Ours or k.name in args.peers):
        try:
            with lab.verdict.peak_memory() as peak:
                started = time.perf_counter()
                peer = kind(path, args.dtype, max(args.batches), max(64, *args.positions), more)
                loaded = time.perf_counter() - started
                peer.start(rng.integers(3, vocabulary, (1, 16)))
                peer.decode(4)
        except ImportError as error:
            print(f"left out: {kind.name} ({error})")
            continue
        peer.reading = os.cpu_count()
        if kind is not Ours:
            prompt = rng.integers(3, vocabulary, (1, 64))
            peer.reading = best_threads(peer, lambda peer=peer, prompt=prompt: peer.start(prompt))
        memory = f"peak anonymous memory {peak['bytes'] / 1e6:5.0f} MB"
        print(f"{kind.name:22} loads in {loaded:5.1f} s, {memory}, reads with {peer.reading} threads", flush=True)
        peers.append(peer)
    for batch, position in [(b, p) for b in args.batches for p in args.positions]:
        tokens = rng.integers(3, vocabulary, (batch, position))
        rows = measured(peers, tokens, args.rounds, args.tokens)
        print(*map(json.dumps, rows), sep="\n", flush=True)
        if args.json:
            keep([{"dtype": args.dtype, **row, **when} for row in rows], where, args.outputs / "peers.json")


def keep(rows, where, file):
    """Put rows into outputs/peers.json, where they take the place of rows of the same dtype, batch, position and peer.
    Those stay there as "earlier": what the same case gave in another process."""
    old = json.loads(file.read_text()) if file.exists() else {"rows": []}
    key = lambda row: (row["dtype"], row["batch"], row["position"], row["peer"])
    new = {key(row): row for row in [*old["rows"], *rows]}
    earlier = old.get("earlier", []) + [row for row in old["rows"] if row is not new[key(row)]]
    kept = {"rows": [new[k] for k in sorted(new)], "earlier": sorted(earlier, key=key)}
    lab.verdict.write_json(file, {"machine": where, **kept})


if __name__ == "__main__":
    main()
