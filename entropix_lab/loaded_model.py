"""A model as every other folder is handed it: its config, weights, tokenizer and path."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .cpu_weights import DecodeWeights, decode_weights
from .llama.config import LlamaConfig
from .llama.weights import XfmrWeights
from .tokenizer import Tokenizer, why_no_tokenizer


@dataclass(frozen=True, eq=False)
class Model:
    """What load_model returns; ``dataclasses.replace(model, weights=...)`` is how an experiment changes it."""

    config: LlamaConfig
    weights: XfmrWeights
    tokenizer: Tokenizer | None
    path: Path

    def __repr__(self):
        c = self.config
        return (
            f"Model({self.name}, {self.dtype}, {c.n_layers} layers of dim {c.dim}, {c.n_heads} heads on "
            f"{c.n_kv_heads}, vocabulary {c.vocab_size}{'' if self.tokenizer else ', no tokenizer'})"
        )

    @property
    def name(self) -> str:
        path = self.path.parent if self.path.name == "original" else self.path
        if path.parent.name == "snapshots":  # Hugging Face's cache: models--organisation--name/snapshots/commit
            return path.parent.parent.name.rpartition("--")[2]
        return path.name

    @property
    def dtype(self) -> str:
        return str(self.weights.tok_embeddings.dtype)

    @cached_property
    def decode_weights(self) -> XfmrWeights | DecodeWeights:
        """The weights as generation uses them (see cpu_weights.decode_weights), made once."""
        return decode_weights(self.weights)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError that says why there is none."""
        if self.tokenizer is None:
            raise ValueError(why_no_tokenizer(self.path))
        return self.tokenizer

    def encode(self, text_or_tokens) -> np.ndarray:
        """Text, token ids [T], or [B,T] (lists, or arrays of NumPy, JAX or PyTorch) -> [B,T] int32.

        Raises ValueError for an empty prompt, a token outside the vocabulary, and whatever is neither text nor ids.
        """
        if isinstance(text_or_tokens, str):
            text_or_tokens = self.require_tokenizer().encode(text_or_tokens)
        tokens = _to_numpy(text_or_tokens)
        if tokens.size == 0:
            raise ValueError("the prompt is empty: expected at least one token")
        if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
            what = f"{tokens.dtype} of {tokens.shape}" if tokens.ndim else f"{text_or_tokens!r:.60}"
            raise ValueError(f"expected text, or token ids [T] or [B,T], found {what}")
        if (outside := tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]).size:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.config.vocab_size}")
        return np.atleast_2d(tokens).astype(np.int32)

    def prompt_rows(self, prompts) -> list[np.ndarray]:
        """Token ids [T] of each prompt: of one (a text, ids [T]) or several (a list of those, ids [B,T]).

        Raises ValueError for no prompt at all, and as encode.
        """
        given = prompts if isinstance(prompts, Sequence) else _to_numpy(prompts)
        scalar = lambda x: not isinstance(x, str) and (isinstance(x, int) or getattr(x, "ndim", None) == 0)
        one = isinstance(prompts, str) or scalar(given) or (len(given) > 0 and scalar(given[0]))
        rows = [self.encode(p) for p in ([prompts] if one else given)]
        if not rows:
            raise ValueError("expected at least one prompt, found an empty list")
        for row in rows:
            if len(row) != 1:
                raise ValueError(f"expected one row of token ids to a prompt, found an array of {row.shape}")
        return [row[0] for row in rows]


def _to_numpy(x) -> np.ndarray:
    """x as an array on the host: also a tensor of PyTorch's that has a gradient or lives on another device."""
    try:
        return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    except (TypeError, ValueError) as e:  # rows of a list that differ in length
        raise ValueError(f"expected text, or token ids [T] or [B,T], found {type(x).__name__}: {e}") from e
