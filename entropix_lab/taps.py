"""A pass layer by layer, with every tap: ours, the same in float64, and correct variants of ours.

One layer at a time, so that a long prompt or a large model needs the memory of one layer's taps. Whoever taps another
implementation names its values so (B rows, T tokens, N query heads, K key/value heads, H head_dim; i counts layers):

    tok_embeddings                                   [B,T,D]    the embedding of each token
    layers.i.attention_norm                          [B,T,D]    after the RMSNorm and its gain
    layers.i.attention.wq, .wk, .wv                  [B,T,N*H]  (K*H) the products, before RoPE
    layers.i.attention.xq_rope, .xk_rope             [B,T,N,H]  (K) rotated; Meta's layout pairs entries 2j and 2j+1
    layers.i.attention.scores                        [B,N,T,T]  divided by sqrt(H), -inf where masked
    layers.i.attention.probs                         [B,N,T,T]  their softmax, 0 where masked
    layers.i.attention.wo                            [B,T,D]    attention's output, before the residual sum
    layers.i.h_attn                                  [B,T,D]    the stream after that sum
    layers.i.ffn_norm                                [B,T,D]
    layers.i.feed_forward.w1, .w3, .w2               [B,T,F], [B,T,F], [B,T,D]  gate before SiLU, up, down
    layers.i                                         [B,T,D]    the stream after the layer
    norm, output                                     [B,T,D], [B,T,V]  the final RMSNorm, the logits

This is also the order of execution. Query head n reads key/value head n // (N/K). Floats, compared as float32.
"""

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import model as forward
from . import weights as weights_module
from .model import KVCache, at_least_float32, check_inputs, xfmr_with_taps
from .weights import fused

# XLA may keep more precision between fused operations than the dtype has, which hides bfloat16's roundings.
EXACT = {"xla_allow_excess_precision": False}

# What each op of a layer is and which values of the same layer it reads; "" is the layer's own output.
OPS = {
    "attention_norm": ("the RMSNorm before attention", ("the layer's input",)),
    "attention.wq": ("the queries", ("attention_norm",)),
    "attention.wk": ("the keys", ("attention_norm",)),
    "attention.wv": ("the values", ("attention_norm",)),
    "attention.xq_rope": ("the queries after RoPE", ("attention.wq",)),
    "attention.xk_rope": ("the keys after RoPE", ("attention.wk",)),
    "attention.scores": ("the attention scores and their mask", ("attention.xq_rope", "attention.xk_rope")),
    "attention.probs": ("the attention probabilities", ("attention.scores",)),
    "attention.wo": ("attention's output", ("attention.probs", "attention.wv")),
    "h_attn": ("the stream after attention", ("the layer's input", "attention.wo")),
    "ffn_norm": ("the RMSNorm before the feed-forward", ("h_attn",)),
    "feed_forward.w1": ("the gate of the feed-forward", ("ffn_norm",)),
    "feed_forward.w3": ("the up-projection", ("ffn_norm",)),
    "feed_forward.w2": ("the feed-forward's output", ("feed_forward.w1", "feed_forward.w3")),
    "": ("the stream after the layer", ("h_attn", "feed_forward.w2")),
}


OUTER_OPS = {
    "tok_embeddings": ("the embedding of each token", ("the tokens",)),
    "norm": ("the final RMSNorm", ("the last layer's output",)),
    "output": ("the logits", ("norm",)),
}


def full_name(i: int, op: str) -> str:
    return f"layers.{i}.{op}".rstrip(".")


def tap_names(n_layers: int) -> list[str]:
    """Every tap of a model of n_layers, in the order of execution."""
    return ["tok_embeddings", *(full_name(i, op) for i in range(n_layers) for op in OPS), "norm", "output"]


def tap_shape(name: str, config, B: int, T: int) -> tuple[int, ...]:
    """The shape of a tap of B rows of T tokens."""
    N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
    shapes = dict.fromkeys(("wk", "wv"), (B, T, K * H)) | {"wq": (B, T, N * H), "output": (B, T, config.vocab_size)}
    shapes |= dict.fromkeys(("w1", "w3"), (B, T, config.ffn_dim)) | dict.fromkeys(("scores", "probs"), (B, N, T, T))
    shapes |= {"xq_rope": (B, T, N, H), "xk_rope": (B, T, K, H)}
    return shapes.get(name.rsplit(".", 1)[-1], (B, T, config.dim))


@contextlib.contextmanager
def replaced(functions):
    """Pairs (name, function) in the place of functions of model.py, while a program is traced."""
    before = []
    for name, function in functions:
        if not inspect.isfunction(getattr(forward, name, None)):
            raise ValueError(f"model.py has no function {name!r} to replace")
        found = [m for m in (forward, weights_module) if hasattr(m, name)]
        before += [(m, name, getattr(m, name)) for m in found]
        for module in found:
            setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in reversed(before):
            setattr(module, name, function)


def relative_error(name, x, y):
    """||x - y|| / ||y|| of every position, [B,T]; infinite where one is masked and the other is not.

    A norm over the whole tensor would hide an error in all tokens but the few with massive activations.
    """
    x, y = (at_least_float32(jnp.asarray(z)) for z in (x, y))
    axes, same_mask = over(name, y), True
    if name.endswith(".scores"):  # the only tap with a mask in it
        dead_x, dead_y = jnp.isneginf(x), jnp.isneginf(y)
        same_mask = jnp.all(dead_x == dead_y, axes)
        x, y = (jnp.where(dead_x | dead_y, 0, z) for z in (x, y))
    norm = lambda z: jnp.sqrt(jnp.sum(z * z, axes))
    size = norm(y)
    return jnp.where(same_mask, norm(x - y) / jnp.where(size == 0, 1, size), jnp.inf)


def over(name, x):
    """The axes of a tap that belong to one position."""
    return (1, 3) if name.endswith((".scores", ".probs")) else tuple(range(2, x.ndim))


def _observer(theirs, forced):
    """(taps, tap): a tap that keeps each value, and where forced is true hands on theirs, where there is one, so that
    everything downstream reads that."""
    taps = {}

    def tap(name, x):
        taps[name] = x.reshape(x.shape[0], -1, *x.shape[3:]) if x.ndim == 5 else x  # [B,K,G,T,S] -> [B,N,T,S]
        return jnp.where(forced, theirs[name].astype(x.dtype).reshape(x.shape), x) if name in theirs else x

    return taps, tap


def _layer(w, config, x, start_pos, cache_k, cache_v, theirs, forced, replace, around):
    with replaced(replace), replaced(_wrapped(around)):
        taps, tap = _observer(theirs, forced)
        freqs_cis, live = forward.positions_and_mask(config, x.shape[1], start_pos, cache_k.shape[1], x.dtype)
        x, keys, values = forward.block(w, config, x, freqs_cis, live, start_pos, cache_k, cache_v, tap)
        return tap("", x), keys, values, taps


def _head(weights, config, x, theirs, forced, replace, around):
    with replaced(replace), replaced(_wrapped(around)):
        taps, tap = _observer(theirs, forced)
        forward.head(weights, config, x, tap)
        return taps


def _whole(weights, config, tokens, start_pos, cache, replace):
    with replaced(replace):
        return forward.xfmr(weights, config, tokens, start_pos, cache)


def _wrapped(around):
    return [(name, wrapper(getattr(forward, name))) for name, wrapper in around]


_jit = lambda f, *static: jax.jit(f, static_argnames=("config", "replace", *static), compiler_options=EXACT)
_compiled = {_layer: _jit(_layer, "around"), _head: _jit(_head, "around"), _whole: _jit(_whole)}


def forget_programs():
    """Drop the compiled programs: each replaced function left its own, and a process can hold only so many."""
    for program in _compiled.values():
        program.clear_cache()


def whole_logits(model, tokens, replace=(), plan=None):
    """The logits [B,T,V] of the forward as it is used, one program to a piece of the plan (as in Pass)."""
    (B, T), tokens, logits = tokens.shape, jnp.asarray(tokens), {}
    cache = KVCache.new(model.config, B, T, model.dtype)
    for start, length in plan or [(np.zeros(B, np.int32), T)]:
        piece = _cut({"tokens": tokens}, start, length)["tokens"]
        with jax.default_matmul_precision(model.matmul_precision):
            found, cache = _compiled[_whole](model.weights, model.config, piece, start, cache, tuple(replace))
        logits = {"output": found} if length == T else _put(logits, {"output": found}, start, T)
    return logits["output"]


class Variant(NamedTuple):
    """A correct way to compute the same layer: other sums, another form of the weights, several copies of the batch.

    around: (name, wrapper) of functions of model.py. A wrapper has no formula of its own: it would be right where ours
    is wrong, and what is wrong with ours would count as noise. reorders: its sums run in another order. A function that
    misses some entries then misses others, and one that sums in too few digits rounds others away, so such noise counts
    up to a few times our distance from the truth.
    """

    name: str
    around: tuple = ()
    reorders: bool = False
    form: Callable = lambda w: w
    copies: int = 1


def _linear_reversed(linear):
    return lambda x, w: linear(x[..., ::-1], w[:, ::-1])


def _norm_reversed(rms_norm):
    return lambda x, weight, eps: rms_norm(x[..., ::-1], weight[::-1], eps)[..., ::-1]


def _scores_reversed(attend):
    return lambda xq, keys, values, live, tap: attend(xq[..., ::-1], keys[..., ::-1], values, live, tap)


def _scores_even_first(attend):
    turn = lambda x: jnp.concatenate([x[..., ::2], x[..., 1::2]], -1)
    return lambda xq, keys, values, live, tap: attend(turn(xq), turn(keys), values, live, tap)


def _softmax_reversed(softmax):
    return lambda scores: softmax(scores[..., ::-1])[..., ::-1]


def _linear_in_halves(linear):
    def halves(x, w):
        half, x_wide = x.shape[-1] // 2, at_least_float32(x)
        return (linear(x_wide[..., :half], w[:, :half]) + linear(x_wide[..., half:], w[:, half:])).astype(x.dtype)

    return halves


def _widened(w):
    """Matrices in float32 at least: products of bfloat16 are slow on a CPU, and their sums are float32 anyway."""
    return jax.tree.map(lambda x: at_least_float32(x) if x.ndim == 2 else x, w)


def _angles_off(precompute_freqs_cis):
    """Every rotation angle half a float32 unit larger: the next port's table need not be rounded as ours is."""

    def table(config, end, dtype=np.float32):
        with jax.ensure_compile_time_eval():  # a table on trial may be jax.numpy's
            cos, sin = (np.asarray(t, np.float64) for t in precompute_freqs_cis(config, end + 1, dtype))
        off = np.outer(np.arange(end + 1), np.arctan2(sin[1], cos[1])) * (np.finfo(np.float32).eps / 2)
        turned = cos * np.cos(off) - sin * np.sin(off), sin * np.cos(off) + cos * np.sin(off)
        return tuple(t[:end].astype(dtype) for t in turned)

    return table


_REVERSED = (
    ("linear", _linear_reversed),
    ("rms_norm", _norm_reversed),
    ("attend", _scores_reversed),
    ("softmax", _softmax_reversed),
)
VARIANTS = (
    Variant("sums in reverse, fused weights, twice the batch", _REVERSED, True, lambda w: _widened(fused(w)), copies=2),
    Variant("sums in halves", (("linear", _linear_in_halves), ("attend", _scores_even_first)), True, _widened),
    Variant("angles off by a rounding", (("precompute_freqs_cis", _angles_off),)),
)
OURS, TRUTH = Variant("ours"), Variant("truth")


class Pass:
    """One way to run the forward over tokens [B,T], layer by layer, on streams that the caller hands in.

    plan: (first position of each row [B], number of tokens) of each piece that goes through the cache in turn, None for
    one piece. What a later piece computes of a position takes the place of what an earlier one did.
    """

    def __init__(self, config, shape, variant, replace=(), plan=None):
        self.config, self.variant, (self.B, self.T) = config, variant, shape
        self.replace = tuple(replace)
        self.plan = plan or [(np.zeros(self.B, np.int32), self.T)]

    def layer(self, w, x, theirs, forced):
        """One layer on the stream x [B,T,D] -> (the stream after it, {op: tap}). forced: every op then reads theirs,
        {op: tap}, where there is one."""
        n = self.variant.copies
        x, theirs = jax.tree.map(lambda a: jnp.concatenate([a] * n), (x, theirs)) if n > 1 else (x, theirs)
        # what no piece has written yet must never be read
        unwritten = 0 if len(self.plan) == 1 else 100
        keys = values = jnp.full((len(x), self.T, self.config.n_kv_heads, self.config.head_dim), unwritten, x.dtype)
        w, taps = self.variant.form(w), {}
        for start, length in self.plan:
            start = jnp.asarray(np.tile(start, n))
            whole, pieces = length == self.T, {"stream": x, **theirs}
            pieces = pieces if whole else _cut(pieces, start, length)
            piece, read = pieces["stream"], {op: pieces[op] for op in theirs}
            piece, keys, values, found = _compiled[_layer](
                w, self.config, piece, start, keys, values, read, forced, self.replace, self.variant.around
            )
            found["stream"] = piece
            taps = found if whole else _put(taps, found, start, self.T)
        out = taps.pop("stream")
        return out[: self.B], {op: a[: self.B] for op, a in taps.items()}

    def head(self, weights, x, theirs, forced):
        """The final norm and the logits of x [B,T,D] as taps."""
        weights = weights._replace(tok_embeddings=None, layer_weights=())
        weights = weights if self.variant is OURS else _widened(weights)
        return _compiled[_head](weights, self.config, x, theirs, forced, self.replace, self.variant.around)


def _token_axis(op):
    """Where the tokens lie in one row of a tap."""
    return 1 if op.endswith((".scores", ".probs")) else 0


@partial(jax.jit, static_argnames="length")
def _cut(taps, start, length):
    """length tokens of every tap, from start [B] on."""
    cut = lambda op: lambda a, s: jax.lax.dynamic_slice_in_dim(a, s, length, _token_axis(op))
    return {op: jax.vmap(cut(op))(a, start) for op, a in taps.items()}


@partial(jax.jit, static_argnames="T")
def _put(taps, pieces, start, T):
    """The taps of T tokens with those of a piece at start [B]."""

    def put(op, piece):
        shape, axis = list(piece.shape), _token_axis(op)
        shape[axis + 1] = T
        old = taps[op] if taps else jnp.zeros(shape, piece.dtype)
        return jax.vmap(lambda o, p, s: jax.lax.dynamic_update_slice_in_dim(o, p, s, axis))(old, piece, start)

    return {op: put(op, piece) for op, piece in pieces.items()}


def our_taps(model, tokens) -> "dict[str, np.ndarray]":
    """Our taps of one pass over tokens [B,T] as one compiled program, without excess precision, all in memory."""
    cache = KVCache.new(model.config, *tokens.shape, model.dtype)
    check_inputs(model.config, tokens, 0, cache)
    run = jax.jit(xfmr_with_taps, static_argnames="config", compiler_options=EXACT)
    with jax.default_matmul_precision(model.matmul_precision):
        taps = run(model.weights, model.config, jnp.asarray(tokens), 0, cache)[2]
    return {name: np.asarray(taps[name]) for name in tap_names(model.config.n_layers)}
