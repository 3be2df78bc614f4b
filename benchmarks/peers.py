"""This project beside its peers: the same weights, the same dtype, the same prompts, interleaved in one process.

    pip install -e ".[peers]"     # transformers and llama-cpp-python; a peer that is not installed is left out
    python benchmarks/peers.py    # float32; --dtype bfloat16; --batches 1 --positions 64 for a look

For batch 1 and 8 and after 64, 512 and 2,000 tokens: milliseconds to the first token, tokens per second after it
(medians over rounds in which the peers take turns), and their ratio to ours; before that, seconds to load and the
anonymous memory that loading and one generation take. Each peer's threads are those of its own default.
"""

import argparse
import ctypes
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import entropix_lab as lab
from entropix_lab.generation.step import steps
from entropix_lab.proof.reference import _single_rank

MOST = 4096


class Ours:
    """start(tokens [B,T]) gives the first tokens, decode(n) the next n, each row its own."""

    name = "entropix_lab"

    def __init__(self, path, dtype):
        self.model = lab.load_model(path, dtype)

    def start(self, tokens):
        lengths, seeds = np.full(len(tokens), tokens.shape[1], np.int32), [0] * len(tokens)
        self.steps = steps(self.model, list(tokens), lengths, MOST, lab.samplers.greedy(), seeds, 2 * MOST)
        return self.decode(1)[0]

    def decode(self, n):
        return [jax.device_get(next(self.steps))["token"] for _ in range(n)]


class Meta:
    name = "Meta's reference"

    def __init__(self, path, dtype):
        self.reference = lab.load_reference(path, dtype, device="cpu", max_seq_len=MOST, max_batch_size=8)

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
    name = "transformers"

    def __init__(self, path, dtype):
        self.model = lab.hugging_face.load_hugging_face(path, dtype, attn_implementation=None)

    def start(self, tokens):
        self.cache = None
        return self._step(tokens)

    def _step(self, tokens):
        import torch

        with torch.inference_mode():
            ids = torch.tensor(tokens, dtype=torch.long)
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache, self.last = out.past_key_values, out.logits[:, -1].argmax(-1).numpy()
        return self.last

    def decode(self, n):
        return [self._step(self.last[:, None]) for _ in range(n)]


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, path, dtype):
        import llama_cpp

        self.lib = llama_cpp
        file = Path(tempfile.mkdtemp()) / "model.gguf"
        write_gguf(path, file, dtype)
        self.llama = llama_cpp.Llama(str(file), n_ctx=64, n_threads=2, n_threads_batch=2, verbose=False)
        file.unlink()
        params = self.llama.context_params  # a context of our own: the class has one for a single sequence
        params.n_ctx, params.n_batch, params.n_ubatch = 8 * 2304, 2048, 512
        params.n_seq_max, params.kv_unified = 8, True
        self.context = llama_cpp.llama_init_from_model(self.llama._model.model, params)
        self.vocab = lab.load_config(path).vocab_size

    def start(self, tokens):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.position, firsts = tokens.shape[1], []
        for row, ids in enumerate(tokens):
            firsts.append(self._eval([(int(t), i, row, i == len(ids) - 1) for i, t in enumerate(ids)])[0])
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
    theirs = {ours: name for name, ours in lab.demo.NAMES.items()}
    for name, array in lab.checkpoint.read_tensors(path, c):
        if name != "output.weight":  # tied
            array = np.asarray(array, np.float32)
            name = theirs[name.removesuffix(".weight")] + ".weight"
            if dtype == "bfloat16" and array.ndim == 2:
                half = gguf.quantize(array, gguf.GGMLQuantizationType.BF16)
                writer.add_tensor(name, half, raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="timed tokens a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--positions", type=int, nargs="+", default=[64, 512, 2000])
    args = parser.parse_args()
    path = lab.checkpoint.find_checkpoint("SmolLM2-135M-Instruct")
    peers, rng = [], np.random.default_rng(0)
    print(lab.verdict.environment(dtype=args.dtype))
    for kind in (Ours, Meta, Transformers, LlamaCpp):
        try:
            with lab.verdict.peak_memory() as peak:
                started = time.perf_counter()
                peer = kind(path, args.dtype)
                loaded = time.perf_counter() - started
                peer.start(rng.integers(3, 49152, (1, 16)))
                peer.decode(4)
        except ImportError as error:
            print(f"left out: {kind.name} ({error})")
            continue
        print(f"{kind.name:18} loads in {loaded:5.1f} s, peak anonymous memory {peak['bytes'] / 1e6:5.0f} MB")
        peers.append(peer)
    for batch, position in [(b, p) for b in args.batches for p in args.positions]:
        tokens = rng.integers(3, 49152, (batch, position))
        first, rate, start = {}, {p.name: [] for p in peers}, {}
        for peer in peers:
            peer.start(tokens)  # compiles, and warms caches
            peer.decode(4)
            started = time.perf_counter()
            start[peer.name] = peer.start(tokens)
            first[peer.name] = time.perf_counter() - started
            peer.decode(2)
        for _ in range(args.rounds):
            for peer in peers:
                started = time.perf_counter()
                peer.decode(args.tokens)
                rate[peer.name].append(batch * args.tokens / (time.perf_counter() - started))
        for peer in peers:
            row = {
                "peer": peer.name,
                "batch": batch,
                "position": position,
                "first_token_ms": round(1e3 * first[peer.name], 1),
                "tokens_per_s": round(float(np.median(rate[peer.name])), 1),
                "ours_over_theirs": round(float(np.median(np.divide(rate[Ours.name], rate[peer.name]))), 2),
                "same_first_token": bool((start[peer.name] == start[Ours.name]).all()),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
