"""Multi-token generation by the three programs of step.py; rows of a batch are independent of each other."""

import codecs
import time
from dataclasses import dataclass, field

import jax
import numpy as np
from tqdm import tqdm

from ..compiler import canary
from ..entropy.inspector import notebook_html, plain_html
from ..entropy.trace import Trace, new_trace
from ..llama.sharding import gathered
from ..sampling.plain import bound, greedy
from .step import steps


@dataclass(frozen=True, eq=False)
class Generation:
    """One row: what was generated, and what the model thought of it.

    tokens: the new ids, the stop token included; text: theirs, without it; logprobs: of each chosen token under the
    model (nats, whatever the sampler did); margins: between the two largest logits of each step; ties: steps where
    that margin is within rounding, so that another right program may choose otherwise; finish_reason: "stop",
    "length" (max_new_tokens) or "max_seq_len"; timing: seconds for the whole batch ("first_token_s", "decode_s") and
    this row's "tokens_per_s" after the first token; info: what the sampler reported, arrays [tokens] by name; trace: a
    Trace of the tokens, when generate was asked for it.
    """

    prompt: str
    prompt_tokens: np.ndarray
    tokens: np.ndarray
    text: str
    logprobs: np.ndarray
    margins: np.ndarray
    ties: np.ndarray
    finish_reason: str
    seed: int
    timing: dict = field(default_factory=dict)
    info: dict = field(default_factory=dict)
    trace: Trace | None = None

    def __repr__(self):
        return f"Generation({self.text!r}, {len(self.tokens)} tokens, {self.finish_reason})"

    def _repr_html_(self):
        rate = f", {self.timing['tokens_per_s']:.1f} tokens/s" if self.timing.get("tokens_per_s") else ""
        note = f"{len(self.prompt_tokens)} + {len(self.tokens)} tokens, {self.finish_reason}, mean log-probability "
        note += f"{self.logprobs.mean():.2f} nats{rate}"
        return plain_html(self.prompt, self.text, note) if self.trace is None else notebook_html(self.trace, note=note)


def generate(
    model,
    prompts,
    max_new_tokens: int = 64,
    sampler=greedy(),  # noqa: B008 (a frozen dataclass)
    seed=0,
    stream=None,
    stop=None,
    max_seq_len: int = 8192,
    progress: bool | None = None,
    trace: bool | str | tuple[str, ...] = False,
) -> list[Generation]:
    """Continue one prompt or a batch of prompts of any lengths: a Generation for each, in their order.

    prompts: a text; token ids [T], as a list or an array of NumPy, JAX or PyTorch; ids [B,T], a prompt to each row; or
    a list of texts and ids. A row's randomness depends on its own seed and step, not on its place. In float32 each row
    gives the tokens that it would give alone (but for ties, see Generation). In bfloat16 only greedy decoding does:
    logits round differently in a batch of another size, and a sampled row may become another, equally good sample.
    seed: from 0 to 2**32 - 1, one for all rows, or one to each (``seed=range(8)`` with eight times the same prompt
    gives eight samples).
    stream: True prints the text as it comes, rows one below the other; or a function (row, text). Either gets whole
    characters only, and nothing of a stop string: what was streamed is the text.
    stop: token ids or strings that end a row; None for the model's stop tokens, () for none.
    max_seq_len: a row that reaches it stops. It costs nothing: the cache grows with what is used.
    progress: a bar on stderr; None shows one for batches in a terminal.
    trace: True keeps entropies, alternatives, attention metrics and what the sampler reports of every token; "lens" the
    logit lens too, which costs as many output heads to a token as the model has layers; "attention" the largest sources
    of every head; ("lens", "attention") both.

    Raises ValueError for an empty prompt or one that leaves no room below max_seq_len, max_new_tokens below 1, seeds
    that are not one to a prompt, what is no sampler, and text or a stop string without a tokenizer.
    """
    rows = model.prompt_rows(prompts)
    seeds = row_seeds(seed, len(rows))
    check(rows, max_new_tokens, max_seq_len)
    trace = parts_of(trace)
    canary()
    sampler = bound(sampler, model.tokenizer)
    writers = [_Writer(model, i, stop, None if stream is True else stream, sampler) for i in range(len(rows))]
    printer = _Printer(writers) if stream is True else lambda: None
    lengths = np.array([len(row) for row in rows], np.int32)
    alone = len(rows) == 1 or stream is not None
    hidden = (alone or None) if progress is None else not progress  # None: tqdm shows it in a terminal
    found = steps(model, rows, lengths, max_new_tokens, sampler, seeds, max_seq_len, trace)
    started, first_token = time.perf_counter(), None
    with tqdm(total=max_new_tokens, unit="token", disable=hidden) as bar:
        for count, out in enumerate(found):
            out = jax.device_get(gathered(out))
            first_token = first_token or time.perf_counter()
            for i, writer in enumerate(writers):
                if writer.finish_reason is None:
                    writer.take({name: x[i] for name, x in out.items()})
                    if writer.finish_reason is None and lengths[i] + count + 1 >= max_seq_len:
                        writer.finish("max_seq_len")
            printer()
            bar.update()
            if all(writer.finish_reason for writer in writers):
                break
    decode_s = time.perf_counter() - first_token
    for writer in writers:
        if writer.finish_reason is None:
            writer.finish("length")
    printer()
    timing = {"first_token_s": first_token - started, "decode_s": decode_s}
    return [w.generation(row, s, timing) for w, row, s in zip(writers, rows, seeds, strict=True)]


def chat(model, messages, **options) -> Generation:
    """The assistant's answer to a conversation: a string, or dicts {"role", "content"}; options as for generate.

    Raises ValueError for what is no conversation (see Tokenizer.encode_dialog_prompt), and without a tokenizer.
    """
    return generate(model, model.require_tokenizer().encode_dialog_prompt(messages), **options)[0]


class _Writer:
    """Collects one row's steps, finds its end, and hands on whole characters: text[:ready] cannot be taken back."""

    def __init__(self, model, row, stop, stream, sampler):
        self.model, self.row, self.stream, self.sampler, self.finish_reason = model, row, stream, sampler, None
        self.steps, self.text, self.ready = [], "", 0
        stop = (model.tokenizer.stop_tokens if model.tokenizer else ()) if stop is None else stop
        stop = (stop,) if isinstance(stop, str | int) else stop
        self.stop_tokens = {int(s) for s in stop if not isinstance(s, str)}
        self.stop_texts = [s for s in stop if isinstance(s, str)]
        if self.stop_texts and (model.tokenizer is None or "" in self.stop_texts):
            raise ValueError(f"stop strings need a tokenizer and a character, found {self.stop_texts}")
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, step):
        self.steps.append(step)
        if int(step["token"]) in self.stop_tokens:
            return self.finish("stop")
        if self.model.tokenizer is not None:
            self._write(self.decoder.decode(self.model.tokenizer.decode_bytes(int(step["token"]))))

    def finish(self, reason):
        self.finish_reason = reason
        self._write("" if reason == "stop" else self.decoder.decode(b"", final=True))

    def _write(self, piece):
        self.text += piece
        ends = [i for i in (self.text.find(s, self.ready) for s in self.stop_texts) if i >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.finish_reason = "stop"
        # a tail that may yet become a stop string is held back until the row ends
        tails = [] if self.finish_reason else [s[:n] for s in self.stop_texts for n in range(1, len(s))]
        held = max((len(tail) for tail in tails if self.text.endswith(tail)), default=0)
        shown, self.ready = self.ready, len(self.text) - held
        if self.stream and self.text[shown : self.ready]:
            self.stream(self.row, self.text[shown : self.ready])

    def generation(self, row, seed, timing):
        of = lambda name: np.array([step[name] for step in self.steps])
        after_first = max(0, len(self.steps) - 1)
        under = lambda prefix: {n.removeprefix(prefix): of(n) for n in self.steps[0] if n.startswith(prefix)}
        info = under("info.")
        trace = under("trace.") and new_trace(self.model, row, of("token"), under("trace."), info, self.sampler)
        rate = after_first / timing["decode_s"] if after_first and timing["decode_s"] > 0 else None
        return Generation(
            prompt=self.model.tokenizer.decode(row) if self.model.tokenizer else str(list(row)),
            prompt_tokens=np.array(row, np.int32),
            tokens=of("token").astype(np.int32),
            text=self.text,
            logprobs=of("logprob"),
            margins=of("margin"),
            ties=np.flatnonzero(of("tie")),
            finish_reason=self.finish_reason,
            seed=seed,
            timing=timing | {"tokens_per_s": rate},
            info=info,
            trace=trace or None,
        )


class _Printer:
    """Prints what is ready of rows in their order: one of them as it comes, the next when that one has ended."""

    def __init__(self, writers):
        self.writers, self.row, self.shown = writers, 0, 0

    def __call__(self):
        for writer in self.writers[self.row :]:
            head = f"[{self.row}] " if len(self.writers) > 1 and self.shown == 0 < writer.ready else ""
            print(head + writer.text[self.shown : writer.ready], end="", flush=True)
            self.shown = writer.ready
            if writer.finish_reason is None:
                break
            print(flush=True)
            self.row, self.shown = self.row + 1, 0


def row_seeds(seed, count) -> list[int]:
    """A seed to each of count rows. Raises ValueError for one that is no whole number of 32 bits."""
    seeds = np.asarray(seed)
    if seeds.dtype.kind not in "iu" or not seeds.size or seeds.min() < 0 or seeds.max() >= 2**32:
        raise ValueError(f"expected a seed from 0 to 2**32 - 1, or one to each prompt, found {seed!r}")
    if seeds.shape not in ((), (count,)):
        raise ValueError(f"expected one seed, or one to each of the {count} prompts, found {seeds.size}")
    return np.broadcast_to(seeds, count).tolist()


def parts_of(trace) -> tuple[str, ...] | None:
    """What step calls trace, from what generate calls so."""
    if trace is True or trace is False:
        return () if trace else None
    names = {trace} if isinstance(trace, str) else set(trace) if isinstance(trace, tuple | list) else {None}
    if not names <= {"lens", "attention"}:
        raise ValueError(f'trace must be True, False, "lens", "attention" or a tuple of these two, found {trace!r}')
    return tuple(sorted(names))


def check(rows, max_new_tokens, max_seq_len):
    """Raise ValueError as generate says."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    for i, row in enumerate(rows):
        if len(row) >= max_seq_len:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens, which leaves no room below max_seq_len={max_seq_len}: "
                "shorten it, or pass a larger max_seq_len"
            )
