"""What attention heads do, measured: how much of a head's attention goes where a head of that kind would look."""

from functools import partial

import jax
import numpy as np

from ..llama.model import check_inputs, transformer
from ..llama.prefill import cache_beside
from ..llama.sharding import gathered

KINDS = {
    "sink": "the first token",
    "previous token": "the token before",
    "same token": "the same token, where it came before",
    "induction": "what followed the same token before",
}


def repeated(model, length: int = 48, rows: int = 4, seed: int = 0) -> np.ndarray:
    """Rows of random text said twice: ids [rows, 2 * length], after the tokenizer's first token where it has one.

    No token comes twice within a half, and special ones do not come at all. Raises ValueError where the vocabulary is
    too small for that.
    """
    special = set(model.tokenizer.special_tokens.values()) if model.tokenizer else set()
    words = np.array([i for i in range(model.config.vocab_size) if i not in special], np.int32)
    if not 2 <= length <= len(words):
        raise ValueError(f"length must be from 2 to {len(words)}, the ordinary tokens of this model, found {length}")
    rng = np.random.default_rng(seed)
    half = np.stack([rng.choice(words, length, replace=False) for _ in range(rows)])
    first = model.tokenizer.bos_id if model.tokenizer else None
    before = np.full((rows, 0 if first is None else 1), first or 0, np.int32)
    return np.concatenate([before, half, half], 1)


def kinds(model, length: int = 48, rows: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """How much of each head's attention goes where a head of each of KINDS looks: a share [L,N] to each kind.

    Means over the second halves of ``repeated`` random texts, their first token apart: nothing but the repetition says
    what comes, so what looks like induction is no habit of language. Attention that is the same everywhere would give
    each kind 1 / (1.5 * length). The kinds are those of Elhage et al. 2021 and Olsson et al. 2022 (previous token,
    induction), Wang et al. 2023 (same token: "duplicate token heads") and Xiao et al. 2023 (sink). A share is what a
    head does on this text; whether the model needs it, ``intervene`` says.
    """
    tokens = repeated(model, length, rows, seed)
    T = tokens.shape[1]
    cache = cache_beside(model.weights, model.config, rows, T)
    check_inputs(model.config, tokens, 0, cache)
    shares = np.asarray(gathered(_shares(model.weights, model.config, tokens, cache, length)))
    return dict(zip(KINDS, np.moveaxis(shares, 1, 0), strict=True))


@partial(jax.jit, static_argnames=("config", "length"))
def _shares(weights, config, tokens, cache, length):
    """[L, kinds, N], kinds in the order of KINDS."""
    at = np.arange(tokens.shape[1] - length + 1, tokens.shape[1])
    slots = (0 * at, at - 1, at - length, at - length + 1)
    found = []

    def tap(name, x):  # [B,K,G,T,S]
        if name.endswith("attention.probs"):
            found.append([x[..., at, s].mean((0, 3)).reshape(-1) for s in slots])
        return x

    transformer(weights, config, tokens, 0, cache, tap)
    return jax.numpy.asarray(found)


def strongest(shares: dict, n: int = 3) -> dict[str, list[tuple[int, int, float]]]:
    """The n heads of the largest share of each kind, from ``kinds``: (layer, head, share), the largest first."""
    best = lambda x: zip(*np.unravel_index(np.argsort(-x, axis=None, kind="stable")[:n], x.shape), strict=True)
    return {kind: [(int(i), int(j), float(x[i, j])) for i, j in best(x)] for kind, x in shares.items()}
