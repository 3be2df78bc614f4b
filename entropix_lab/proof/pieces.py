"""Rows and pieces of the taps of one group. In NumPy: to compile a program for each of so many shapes takes longer than
to copy."""

import jax
import numpy as np


def batch_of(x, copies, stranger):
    """x [R,T,D] with its rows several times; or after an unrelated row, of which no tap is read."""
    x = np.asarray(x)
    return np.concatenate([(x[:1, ::-1] / 2).astype(x.dtype), x] if stranger else [x] * copies)


def last_rows(tree, rows):
    return jax.tree.map(lambda a: np.asarray(a)[-rows:], tree)


def of_views(tree, rows, views, wanted):
    """Of arrays that hold so many rows of each of views, those of the wanted ones."""
    if wanted == views:
        return tree
    of = lambda a, view: np.asarray(a)[views.index(view) * rows :][:rows]
    return jax.tree.map(lambda a: np.concatenate([of(a, view) for view in wanted]), tree)


def cut(taps, start, length):
    """length tokens of every tap, from start [B] on."""
    rows = lambda op, a: [np.asarray(a)[_tokens(op, row, at, length)] for row, at in enumerate(start)]
    return {op: np.stack(rows(op, a)) for op, a in taps.items()}


def put(taps, pieces, start, T):
    """The taps of T tokens, in which a piece takes its place at start [B]; of the first piece taps is empty. TypeError
    where a later piece has another dtype."""
    for op, piece in pieces.items():
        axis, piece = token_axis(op), np.asarray(piece)
        if op not in taps:
            taps[op] = np.zeros((*piece.shape[:axis], T, *piece.shape[axis + 1 :]), piece.dtype)
        for row, at in enumerate(start):
            np.copyto(taps[op][_tokens(op, row, at, piece.shape[axis])], piece[row], casting="no")
    return taps


def _tokens(op, row, start, length):
    """The index of so many tokens of a row."""
    return row, *[slice(None)] * (token_axis(op) - 1), slice(start, start + length)


def token_axis(op):
    """Which axis of a tap has its positions."""
    return 2 if op.endswith((".scores", ".probs")) else 1
