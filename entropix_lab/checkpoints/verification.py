"""What of a checkpoint folder is whole and what is not, in one table, from the readers' own checks."""

import html
from dataclasses import dataclass

from ..llama.config import CheckpointError
from ..tokenizer import why_no_tokenizer
from .find import find_checkpoint, reader_of
from .load import read_tokenizer
from .sums import CHECKLIST, READ, check_sum, known_sums


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

    def row(what, look, say=str):
        """Look, and add a row with what say makes of the value, or with the error; the value, or None."""
        try:
            value = look()
            rows.append(Row(what, say(value)))
            return value
        except (CheckpointError, OSError) as e:
            rows.append(Row(what, "", str(e)))

    if (folder := row("folder", lambda: find_checkpoint(name))) is None:
        return Verification(str(name), tuple(rows))
    sums = row("sums", lambda: known_sums(folder), lambda found: f"{len(found)} known") or {}
    there = {f for f in folder.glob("*") if f.suffix in READ or f.name == CHECKLIST}
    for file in sorted(there | set(sums)):
        agrees = lambda file=file: check_sum(file, *sums[file]) if file in sums else "no sum known"
        row(file.name, lambda file=file, agrees=agrees: f"{agrees()}, {file.stat().st_size:,} bytes")
    reader = reader_of(folder)
    config = row("configuration", lambda: reader.read_config(folder), lambda c: str(c).partition("(")[2][:-1])
    if config is not None:
        row("tensors", lambda: _tensors(reader.open_tensors(folder, config), rows))
        tokens = lambda t: f"{t.n_words} tokens for a vocabulary of {config.vocab_size}"
        none = lambda _: f"none: {why_no_tokenizer(folder)}"
        row("tokenizer", lambda: read_tokenizer(folder, config), lambda t: tokens(t) if t else none(t))
    return Verification(str(folder), tuple(rows))


def _tensors(tensors, rows) -> str:
    count, dtypes, bad = 0, set(), len(rows)
    for tensor in tensors:
        count, dtypes = count + 1, dtypes | {str(tensor.pieces[0].tensor.dtype).removeprefix("torch.")}
        try:
            tensor.read()
        except CheckpointError as e:
            rows.append(Row("tensor", "", str(e)))
    finite = "all" if len(rows) == bad else "not all"
    return f"{count} of the right shapes, {', '.join(sorted(dtypes))}, {finite} finite"
