"""Do the metrics predict the model's mistakes? AUROC with intervals, calibration, and text that is on every machine."""

import ast
import hashlib
import importlib.metadata
import sysconfig
from pathlib import Path

import numpy as np


def auroc(scores, events) -> float:
    """The probability that an event has a larger score than a non-event (ties count half): 0.5 is chance.

    scores and events (bool) [n]. By mid-ranks (Mann and Whitney). NaN where all events are alike.
    """
    events = np.asarray(events, bool)
    n, m = events.sum(), (~events).sum()
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][events].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def interval(statistic, texts, n: int = 400, seed: int = 0) -> tuple[float, float, float]:
    """(statistic of everything, 2.5 %, 97.5 %) by a bootstrap over whole texts: tokens of one text go together.

    texts: a tuple of arrays [texts, tokens], handed to statistic flattened.
    """
    rng, count = np.random.default_rng(seed), len(texts[0])
    flat = lambda rows: statistic(*(x[rows].ravel() for x in texts))
    drawn = [flat(rng.integers(0, count, count)) for _ in range(n)]
    return (flat(np.arange(count)), *(float(q) for q in np.nanpercentile(drawn, [2.5, 97.5])))


def binned(x, y, bins: int = 12) -> np.ndarray:
    """Means of x and y, and counts, in bins of equally many entries by x: [bins,3]."""
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return np.array([(x[part].mean(), y[part].mean(), len(part)) for part in parts if len(part)])


def calibration_error(curve) -> float:
    """The mean distance of a curve of binned(probability, event) from the diagonal, weighted by counts."""
    return float(np.average(np.abs(curve[:, 0] - curve[:, 1]), weights=curve[:, 2]))


def real_texts() -> list[str]:
    """Documentation strings of Python's standard library and licences of this package's dependencies.

    Each differs from the others, and they come in an order that mixes them and does not change; which there are
    depends on the versions of Python and of the dependencies.
    """
    texts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text("utf-8", errors="replace")))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    for package in ("numpy", "jax", "matplotlib", "torch", "tiktoken", "tqdm", "filelock", "gguf", "fairscale"):
        licences = [f for f in importlib.metadata.files(package) or () if f.name.upper().startswith("LICEN")]
        texts += [f.read_text("utf-8") for f in licences[:1]]
    digest = lambda text: hashlib.md5(text.encode()).hexdigest()
    return sorted({text[:200]: text for text in texts if len(text) > 400}.values(), key=digest)


def windows(tokenizer, n_tokens: int, length: int = 256) -> np.ndarray:
    """The starts of real texts as token ids [n, length + 1], as many as predict n_tokens tokens (one to a text).

    Raises ValueError when the texts are too few for n_tokens.
    """
    wanted, rows = -(-n_tokens // length), []
    for text in real_texts():
        tokens = tokenizer.encode(text)[: length + 1]
        if len(tokens) == length + 1:
            rows.append(tokens)
        if len(rows) == wanted:
            return np.array(rows, np.int32)
    raise ValueError(f"{n_tokens} tokens need {wanted} texts longer than {length} tokens, found {len(rows)}")
