"""A Trace: what the model thought at every token of one sequence, kept, saved, shown as a table or as coloured text."""

import json
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ..llama.model import head, no_tap, transformer
from ..llama.prefill import PIECE, prefill
from ..llama.sharding import gathered
from ..sampling import NAMES
from .inspector import notebook_html, saved_page
from .metrics import collector, trace_metrics

FORMAT = 2  # of a saved trace; 1 is no longer read
LISTS = ("alternatives", "alternative_probabilities", "lens_tokens", "lens_probabilities")
LISTS += ("attention_sources", "attention_weights")  # of several tokens or slots to a prediction


@dataclass(frozen=True, eq=False)
class Trace:
    """One entry to each predicted token: what was predicted, how, and which token then came.

    tokens [T] int32 are the tokens that came (chosen by a sampler, or the next ones of a given text), pieces their
    texts, prompt the text before the first of them. The other arrays belong to the prediction of that token, made
    at the token before it; their names and units are those of entropy_varentropy, chosen_metrics, alternatives and
    attention_metrics: [T], [T,10], [T,L,N] to a head, [T,L] to a layer. live [T] is the number of cache slots that the
    prediction could see. None unless asked for: those of lens_metrics ("lens") [T,L], [T,L,5], and attention_sources
    and attention_weights ("attention") [T,L,N,8]; slot s holds token s of (*prompt_pieces, *pieces).
    info: arrays [T,...] that a sampler reported (its branch, ...). words: the text of every id in alternatives and
    lens_tokens. thresholds: what each branch of the sampler wants, as (name, "<" or ">", bound in nats or nats^2).
    """

    tokens: np.ndarray
    pieces: tuple[str, ...]
    prompt: str
    live: np.ndarray
    entropy: np.ndarray
    varentropy: np.ndarray
    surprisal: np.ndarray
    probability: np.ndarray
    rank: np.ndarray
    top_probability: np.ndarray
    attention_entropy: np.ndarray
    attention_varentropy: np.ndarray
    attention_rest: np.ndarray
    attention_sink: np.ndarray
    head_disagreement: np.ndarray
    score_magnitude: np.ndarray
    alternatives: np.ndarray
    alternative_probabilities: np.ndarray
    lens_entropy: np.ndarray | None = None
    lens_tokens: np.ndarray | None = None
    lens_probabilities: np.ndarray | None = None
    lens_rank: np.ndarray | None = None
    attention_sources: np.ndarray | None = None
    attention_weights: np.ndarray | None = None
    info: dict[str, np.ndarray] = field(default_factory=dict)
    prompt_pieces: tuple[str, ...] = ()
    words: dict[int, str] = field(default_factory=dict)
    thresholds: dict[str, list] = field(default_factory=dict)

    def __len__(self):
        return len(self.tokens)

    def __repr__(self):
        mean = "".join(f", mean {n} {getattr(self, n).mean():.2f} nats" for n in ("entropy", "surprisal") if len(self))
        _, layers, heads = self.attention_entropy.shape
        return f"Trace({len(self)} tokens{mean}, {layers} layers, {heads} heads)"

    def __getitem__(self, part: slice) -> "Trace":
        """The entries of a slice; what came before it becomes the prompt."""
        start, _, _ = part.indices(len(self))
        arrays = {name: x[part] for name, x in self._arrays().items()}
        info = {name: x[part] for name, x in self.info.items()}
        before = self.pieces[:start]
        prompts = dict(prompt=self.prompt + "".join(before), prompt_pieces=self.prompt_pieces + before)
        return replace(self, pieces=self.pieces[part], info=info, **prompts, **arrays)

    @property
    def perplexity(self) -> float:
        """exp of the mean surprisal of the tokens that came."""
        return float(np.exp(np.mean(self.surprisal, dtype=np.float64)))

    @property
    def taken(self):
        """How tokens were chosen: ("branch" or "policy", indices [T] into samplers.NAMES of that), or (None, None)."""
        kind = next((name for name in NAMES if name in self.info), None)
        return kind, np.asarray(self.info[kind]) if kind else None

    @property
    def relative_attention_entropy(self) -> np.ndarray:
        """attention_entropy divided by ln(live), its largest possible value: [T,L,N] in 0..1, whatever the position.

        NaN where only one slot could be seen.
        """
        return _relative(self.attention_entropy, self.live)

    @property
    def relative_attention_rest(self) -> np.ndarray:
        """The same without the sink: attention_rest divided by ln(live - 1)."""
        return _relative(self.attention_rest, self.live - 1)

    def _arrays(self) -> dict[str, np.ndarray]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: x for name, x in named.items() if isinstance(x, np.ndarray)}

    def save(self, path) -> Path:
        """Write path as .npz: the arrays under their names, the sampler's as "info.NAME", and the texts in "header",
        UTF-8 JSON. No pickles: any NumPy reads it. Returns the path, with its ending."""
        path = _npz(path)
        named = {name: getattr(self, name) for name in ("pieces", "prompt", "prompt_pieces", "words", "thresholds")}
        header = json.dumps({"format": FORMAT, **named})
        info = {f"info.{name}": x for name, x in self.info.items()}
        np.savez_compressed(path, header=np.frombuffer(header.encode(), np.uint8), **self._arrays(), **info)
        return path

    @classmethod
    def load(cls, path) -> "Trace":
        """What save wrote, the ending of path left out or not. Raises ValueError for a file of another kind or
        format."""
        with np.load(path if Path(path).is_file() else _npz(path)) as file:
            arrays = dict(file)
        try:
            header = json.loads(arrays.pop("header").tobytes())
            info = {name.removeprefix("info."): arrays.pop(name) for name in list(arrays) if name.startswith("info.")}
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
            texts = {name: tuple(header[name]) for name in ("pieces", "prompt_pieces")}
            texts |= {name: header[name] for name in ("prompt", "thresholds")}
            words = {int(token): word for token, word in header["words"].items()}
            return cls(info=info, words=words, **texts, **arrays)
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{path} is not a trace: {e}") from e

    def to_pandas(self):
        """A DataFrame with a row to each token; values of layers and heads are averaged, lists (alternatives, ...) left
        out. Raises ImportError without pandas, which the extra "pandas" brings."""
        try:
            import pandas as pd
        except ImportError as e:
            raise ImportError('to_pandas needs pandas: pip install pandas (the extra "pandas" brings it)') from e

        flat = lambda x: x if x.ndim == 1 else x.reshape(len(x), -1).mean(1)
        columns = {name: flat(x) for name, x in (self._arrays() | self.info).items() if name not in LISTS}
        return pd.DataFrame({"piece": self.pieces, **columns})

    def save_html(self, path) -> Path:
        """Write the inspector that JupyterLab shows of a trace as one page, which needs no other file and no network.
        Returns the path, with its ending."""
        path = Path(path).with_suffix(".html")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(saved_page(self, path.stem), encoding="utf-8")
        return partial.replace(path)

    def _repr_html_(self):
        return notebook_html(self)


def _npz(path) -> Path:
    """path with the ending that save gives it: in place of none or of another."""
    return Path(path).with_suffix(".npz")


def _relative(entropy, live):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(live > 1, 1 / np.log(np.maximum(live, 1)), np.nan)[:, None, None] * entropy


def trace_text(model, text_or_tokens, lens: bool = False, attention: bool = False) -> Trace:
    """What the model thinks of a given text (teacher-forced): a Trace of every token but the first.

    text_or_tokens: text, or token ids [T], T > 1. lens=True adds the logit lens, which costs as many heads as the model
    has layers; attention=True the largest sources of every head. Runs through a KV cache in pieces (see prefill), so
    that a long text at a large vocabulary needs the logits of one piece only. Raises ValueError for a text of fewer
    than two tokens, or of several rows.
    """
    tokens = model.encode(text_or_tokens)
    if len(tokens) != 1 or tokens.shape[1] < 2:
        raise ValueError(f"expected one text of at least two tokens, found tokens of shape {tokens.shape}")
    T = tokens.shape[1] - 1
    following = np.pad(tokens[0, 1:], (0, PIECE))
    parts = []

    def run(piece, start_pos, last, cache):
        after = following[None, start_pos[0] :][:, : piece.shape[1]]
        metrics, cache = _trace_piece(model.weights, model.config, piece, after, start_pos, cache, lens, attention)
        # a last piece begins within the one before it
        new = slice(sum(len(part["entropy"]) for part in parts) - start_pos[0], last[0] + 1)
        parts.append({name: x[0, new] for name, x in jax.device_get(gathered(metrics)).items()})
        return None, cache

    prefill(run, model.weights, model.config, tokens[:, :T])
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return new_trace(model, tokens[0, :1], tokens[0, 1:], arrays)


@partial(jax.jit, static_argnames=("config", "lens", "attention"), donate_argnames="cache")
def _trace_piece(weights, config, tokens, following, start_pos, cache, lens, attention):
    found, tap = collector(attention=attention)
    x, cache = transformer(weights, config, tokens, start_pos, cache, tap)
    logits = head(weights, config, x, no_tap)
    return trace_metrics(weights, config, logits, following, found, lens), cache


def new_trace(model, prompt, tokens, metrics: dict, info: dict | None = None, sampler=None) -> Trace:
    """A Trace from the ids of a prompt and of the tokens that came after it, the arrays [T,...] by name, and the
    sampler that chose the tokens."""
    tokenizer = model.tokenizer
    known = tokenizer.n_words if tokenizer else 0  # a model may have more rows of logits than tokens
    word = lambda token: tokenizer.decode([token]) if token < known else f"<{token}>"
    ids = [metrics[name].ravel() for name in ("alternatives", "lens_tokens") if name in metrics]
    return Trace(
        tokens=np.asarray(tokens, np.int32),
        pieces=tuple(map(word, tokens)),
        prompt=tokenizer.decode(prompt) if tokenizer else "".join(map(word, prompt)),
        prompt_pieces=tuple(map(word, prompt)),
        live=len(prompt) + np.arange(len(tokens), dtype=np.int32),
        words={int(token): word(token) for token in np.unique(np.concatenate(ids))},
        info=info or {},
        thresholds=getattr(sampler, "thresholds", {}),
        **metrics,
    )
