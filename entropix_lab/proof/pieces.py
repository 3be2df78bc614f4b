"""Rows and pieces of the taps of one group: one dispatch to all of them, not one to each."""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnames=("copies", "stranger"))
def batch_of(x, copies, stranger):
    """x [R,T,D] with its rows several times; or after an unrelated row, of which no tap is read."""
    return jnp.concatenate([x[:1, ::-1] / 2, x] if stranger else [x] * copies)


@partial(jax.jit, static_argnames="rows")
def last_rows(tree, rows):
    return jax.tree.map(lambda a: a[-rows:], tree)


def of_views(tree, rows, views, wanted):
    """Of arrays that hold so many rows of each of views, those of the wanted ones."""
    return tree if wanted == views else _blocks(tree, rows, tuple(map(views.index, wanted)))


@partial(jax.jit, static_argnames=("rows", "which"))
def _blocks(tree, rows, which):
    return jax.tree.map(lambda a: jnp.concatenate([a[i * rows : (i + 1) * rows] for i in which]), tree)


@partial(jax.jit, static_argnames="length")
def cut(taps, start, length):
    """length tokens of every tap, from start [B] on."""
    of = lambda op: lambda a, s: jax.lax.dynamic_slice_in_dim(a, s, length, _token_axis(op))
    return {op: jax.vmap(of(op))(a, start) for op, a in taps.items()}


@partial(jax.jit, static_argnames="T")
def put(taps, pieces, start, T):
    """The taps of T tokens with those of a piece at start [B]."""

    def of(op, piece):
        shape, axis = list(piece.shape), _token_axis(op)
        shape[axis + 1] = T
        old = taps[op] if taps else jnp.zeros(shape, piece.dtype)
        return jax.vmap(lambda o, p, s: jax.lax.dynamic_update_slice_in_dim(o, p, s, axis))(old, piece, start)

    return {op: of(op, piece) for op, piece in pieces.items()}


def _token_axis(op):
    """Where the tokens lie in one row of a tap."""
    return 1 if op.endswith((".scores", ".probs")) else 0
