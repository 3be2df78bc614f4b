"""What of a checkpoint folder is whole and what is not, in one table, from the readers' own checks."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..llama.config import CheckpointError
from .find import find_checkpoint, read_tensors, reader_of
from .load import read_tokenizer
from .sums import check_sum, known_sums
from .tokenizer import why_no_tokenizer

KNOWN = ("*.pth", "*.safetensors", "*.json", "*.model", "checklist.chk")


@dataclass(frozen=True)
class Row:
    """what: a file, or a part of the folder; found: what was seen; problem: the reader's error, or ""."""

    what: str
    found: str
    problem: str = ""


@dataclass(frozen=True)
class Verification:
    """What verify returns: str() is a table for a terminal; JupyterLab shows it as HTML."""

    folder: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return not any(row.problem for row in self.rows)

    def __str__(self):
        width = max(len(row.what) for row in self.rows)
        lines = [f"{'BAD' if r.problem else 'ok ':4}{r.what:{width}}  {r.problem or r.found}" for r in self.rows]
        bad = sum(bool(r.problem) for r in self.rows)
        return "\n".join([*lines, f"{self.folder}: {'whole' if self.passed else f'{bad} of {len(lines)} lines bad'}"])

    __repr__ = __str__

    def _repr_html_(self):
        cells = lambda *texts: "".join(f'<td style="text-align:left">{html.escape(t)}</td>' for t in texts)
        rows = (cells("✗ bad" if r.problem else "✓ ok", r.what, r.problem or r.found) for r in self.rows)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def verify(name) -> Verification:
    """Check all of a checkpoint, a folder or a name: every sum that is known, the configuration, every tensor (name,
    shape, dtype, no NaN or infinity), and the tokenizer against the vocabulary.

    Reads every byte. Damage never raises: each piece that a reader refuses is a row with its error, and .passed is
    False. What has no sum (most folders of safetensors) can have a flipped weight that nobody can know of.
    """
    rows = []

    def row(what, look):
        """Add what look() says it found, or its error; the value that it returns besides, or None."""
        try:
            found, value = look()
            rows.append(Row(what, found))
            return value
        except (CheckpointError, OSError) as e:
            rows.append(Row(what, "", str(e)))

    folder = row("folder", lambda: (str(found := find_checkpoint(name)), found))
    if folder is None:
        return Verification(str(name), tuple(rows))
    sums = row("sums", lambda: (f"{len(found := known_sums(folder))} known", found)) or {}
    there = {f for pattern in KNOWN for f in folder.glob(pattern)}
    for file in sorted(there | set(sums)):
        agrees = lambda file=file: check_sum(file, *sums[file]) if file in sums else "no sum known"
        row(file.name, lambda file=file, agrees=agrees: (f"{agrees()}, {file.stat().st_size:,} bytes", None))
    reader = reader_of(folder)
    config = row("configuration", lambda: (str(c := reader.read_config(folder)).partition("(")[2][:-1], c))
    if config is not None:
        row("tensors", lambda: (_tensors(folder, config, rows), None))
        row("tokenizer", lambda: _tokenizer(folder, config))
    return Verification(str(folder), tuple(rows))


def _tensors(folder, config, rows) -> str:
    report = lambda error: rows.append(Row("tensor", "", str(error)))
    count, dtypes, bad = 0, set(), len(rows)
    for _, array in read_tensors(folder, config, report):
        count, dtypes = count + 1, dtypes | {str(np.dtype(array.dtype))}
    return (
        f"{count} of the right shapes, {', '.join(sorted(dtypes))}, {'all' if len(rows) == bad else 'not all'} finite"
    )


def _tokenizer(folder: Path, config):
    tokenizer = read_tokenizer(folder, config)
    if tokenizer is None:
        return f"none: {why_no_tokenizer(folder)}", None
    return f"{tokenizer.n_words} tokens for a vocabulary of {config.vocab_size}", None
