"""A pass layer by layer, with every tap: ours as it is, with functions on trial, and correct variants.

One layer at a time, so that a long prompt or a large model needs the memory of one layer's taps.
"""

import contextlib
import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np

from .. import cpu_weights
from ..compiler import EXACT
from ..llama import model as forward
from ..llama import rope
from ..llama import weights as weights_module
from ..llama.model import KVCache, by_query_head
from ..llama.prefill import resized
from ..llama.sharding import SplitLayerWeights, gathered
from .pieces import batch_of, cut, last_rows, put
from .taps import OUTER_OPS
from .variants import AS_IT_IS

# What the forward is made of, as it was written: what judges another function must not be it. Of model.py's functions
# copies are kept, because a reload of the module changes the code of a function in its place.
_LAYERS = (weights_module.LayerWeights, SplitLayerWeights, cpu_weights.FusedLayerWeights)
_OWNERS = (forward, weights_module, cpu_weights, rope, *_LAYERS)
_AS_WRITTEN = [(o, name, f, f.__code__) for o in _OWNERS for name, f in vars(o).items() if inspect.isfunction(f)]
ORIGINALS = {
    name: types.FunctionType(code, f.__globals__, name, f.__defaults__, f.__closure__)
    for owner, name, f, code in _AS_WRITTEN
    if owner is forward
}


def patched() -> list[str]:
    """Names of functions of the forward that somebody has set to another one, or rewritten."""
    now = lambda owner, name: getattr(owner, name)
    return [n for o, n, f, code in _AS_WRITTEN if now(o, n) is not f or now(o, n).__code__ is not code]


@contextlib.contextmanager
def replaced(functions):
    """Pairs (name, function) in the place of functions of model.py, while a program is traced.

    A function that calls the one it stands for (model.rms_norm inside another rms_norm) reaches the one before it.
    """
    with contextlib.ExitStack() as stack:
        for name, function in functions:
            check_replaceable(name)
            before = getattr(forward, name)
            stack.callback(setattr, forward, name, before)
            setattr(forward, name, _calling(before, name, function))
        yield


def check_replaceable(name):
    if name not in ORIGINALS:
        raise ValueError(f"model.py has no function {name!r} to replace")


def _calling(before, name, function):
    function = _taking_sums(function) if name == "linear" else function

    @functools.wraps(function, updated=())
    def call(*args, **kwargs):
        now = getattr(forward, name)
        setattr(forward, name, before)
        try:
            return function(*args, **kwargs)
        finally:
            setattr(forward, name, now)

    return call


def _taking_sums(product):
    """A product of two arguments as one that takes linear's third: operands are widened to the dtype that the sums are
    to have, and the result is rounded once, after the devices have added their parts of it."""
    with contextlib.suppress(TypeError, ValueError):  # it takes no third; it has no signature
        inspect.signature(product).bind(None, None, None)
        return product

    @functools.wraps(product, updated=())
    def linear(x, w, sums=None):
        return product(x, w) if sums is None else product(x.astype(sums), w.astype(sums)).astype(x.dtype)

    return linear


def _observer(theirs, forced):
    """(taps, tap): a tap that keeps each value [R,...], and in the rows where forced [R] is true hands on theirs
    [B,...], where there is one, so that everything downstream reads that. They stand for as many times B rows as there
    are."""
    taps = {}

    def tap(name, x):
        taps[name] = by_query_head(x)
        if name not in theirs:
            return x
        rows, given = forced.reshape(-1, *[1] * (x.ndim - 1)), theirs[name].astype(x.dtype)
        given = jnp.concatenate([given[: len(x) % len(given)], *[given] * (len(x) // len(given))])
        return jnp.where(rows, given.reshape(x.shape), x)

    return taps, tap


class Programs:
    """The compiled parts of the forward: layer, head, and whole, the forward as it is used.

    functions: pairs (name, function) that stand for functions of model.py; None for the originals, whoever has patched
    what. Every object traces anew, so that a function whose closure or globals changed does not keep its old program.
    """

    def __init__(self, functions=None, options=EXACT):
        for name, _ in functions or ():
            check_replaceable(name)

        def standing():
            if functions is not None:
                return replaced(functions)
            return replaced([(name, ORIGINALS[name]) for name in patched() if name in ORIGINALS])

        def layer(w, config, x, start_pos, cache_k, cache_v, theirs, forced, around=()):
            with standing(), replaced(_wrapped(around)):
                taps, tap = _observer(theirs, forced)
                freqs_cis, mask = forward.positions_and_mask(config, x.shape[1], start_pos, cache_k.shape[-1], x.dtype)
                x, keys, values = forward.block(w, config, x, freqs_cis, mask, start_pos, cache_k, cache_v, tap)
                return tap("", x), keys, values, taps

        def head(weights, config, x, theirs, forced, around=()):
            with standing(), replaced(_wrapped(around)):
                taps, tap = _observer(theirs, forced)
                forward.head(weights, config, x, tap)
                return taps

        def whole(weights, config, tokens, start_pos, cache):
            kept = {}

            def tap(name, x):
                if name in OUTER_OPS or name.count(".") == 1:  # the stream between layers, nothing within them
                    kept[name] = x
                return x

            with standing():
                _, cache = forward.xfmr(weights, config, tokens, start_pos, cache, tap)
            return kept, cache

        jit = lambda f, *static: jax.jit(f, static_argnames=("config", *static), compiler_options=options)
        self.layer, self.head, self.whole = jit(layer, "around"), jit(head, "around"), jit(whole)


def by_token(keys, values):
    """A layer's keys and values as a KVCache holds them, each as [B,S,K,H]: what is compared goes token by token."""
    return keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)


INNOCENT = Programs()


def _wrapped(around):
    return [(name, wrapper(getattr(forward, name))) for name, wrapper in around]


def whole_taps(model, tokens, programs=INNOCENT, plan=None):
    """(taps, cache) of the forward as it is used, one program to a piece of the plan (as in Pass): the stream between
    the layers, "norm" and "output" of tokens [B,T], and the first T slots of the KVCache that it leaves. In pieces the
    cache has more slots than are ever written, as in generation; they hold what must never be read."""
    (B, T), taps = tokens.shape, {}
    cache = KVCache.new(model.config, B, 2 * max(T, 128) if plan else T, model.dtype)
    cache = jax.tree.map(lambda x: x + 100, cache) if plan else cache
    for start, length in plan or [(np.zeros(B, np.int32), T)]:
        piece = cut({"tokens": tokens}, start, length)["tokens"]
        found, cache = gathered(programs.whole(model.weights, model.config, piece, start, cache))
        taps = found if length == T else put(taps, found, start, T)
    return taps, resized(cache, T)


def cached_plan(valid):
    """Pieces of a cached run over right-padded rows: a prompt, then as many tokens at once, then two single ones."""
    B, T = valid.shape
    lengths = valid.sum(1).astype(np.int32)
    steps = 2
    middle = min(-(-(T - steps) // 2), lengths.min() - 1 - steps)
    prompt = max(T - steps - middle, middle)
    pieces = [(np.zeros(B, np.int32), prompt), (lengths - steps - middle, middle)]
    pieces += [(lengths - steps + i, 1) for i in range(steps)]
    return [(start, int(length)) for start, length in pieces]


class Pass:
    """One way to run the forward over tokens [B,T], layer by layer, on streams that the caller hands in: R rows, of
    every view the B rows of the tokens.

    plan: (first position of each row [B], number of tokens) of each piece that goes through the cache in turn, None for
    one piece. What a later piece computes of a position takes the place of what an earlier one did. stranger: an
    unrelated row stands before the others, at other positions where there are pieces, and nothing of it may leak.
    """

    def __init__(self, config, shape, variant=AS_IT_IS, programs=INNOCENT, plan=None, stranger=False):
        self.config, self.variant, self.programs, (self.B, self.T) = config, variant, programs, shape
        self.stranger = stranger
        self.plan = plan or [(np.zeros(self.B, np.int32), self.T)]
        self.cache = None  # keys and values [R,...] of the last layer that was run, as a KVCache holds them
        self.form = (), None  # of the last layer that was run, as it came and in the variant's form

    def layer(self, w, x, theirs, forced):
        """One layer on the stream x [R,T,D] -> (the stream after it, {op: tap}). forced [R], or one for all: the rows
        in which every op reads theirs, {op: tap [B,...]}, where there is one."""
        R, copies, unlike = len(x), self.variant.copies, self.stranger or self.variant.copies > 1
        forced, start = np.tile(np.broadcast_to(forced, R), copies), lambda at: np.tile(at, R * copies // self.B)
        if unlike:
            x = batch_of(x, copies, self.stranger)
        if self.stranger:
            forced = np.append(False, forced)
            start = lambda at: np.append(np.maximum(at[0] - 1, 0), np.tile(at, R // self.B))
        # what no piece has written yet must never be read
        unwritten = 0 if len(self.plan) == 1 else 100
        K, H = self.config.n_kv_heads, self.config.head_dim
        keys, values = (np.full((len(x), K, *shape), unwritten, x.dtype) for shape in ((H, self.T), (self.T, H)))
        w, taps = self._formed(w), {}
        for at, length in self.plan:
            whole = length == self.T
            piece, read = (x, theirs) if whole else (cut({"": x}, start(at), length)[""], cut(theirs, at, length))
            piece, keys, values, found = gathered(
                self.programs.layer(
                    w, self.config, piece, start(at), keys, values, read, forced, around=self.variant.around
                )
            )
            found["stream"] = piece
            taps = found if whole else put(taps, found, start(at), self.T)
        keys, values, taps = last_rows((keys, values, taps), R) if unlike else (keys, values, taps)
        self.cache = keys, values
        return taps.pop("stream"), taps

    def _formed(self, w):
        """The variant's form of a layer, made once for all views."""
        if len(w) != len(self.form[0]) or any(a is not b for a, b in zip(w, self.form[0], strict=True)):
            self.form = (), None  # the memory is for one layer
            self.form = w, self.variant.form(w)
        return self.form[1]

    def head(self, weights, x, theirs, forced):
        """The final norm and the logits of x [R,T,D] as taps."""
        weights = self.variant.head(weights._replace(tok_embeddings=None, layer_weights=()))
        forced = np.broadcast_to(forced, len(x))
        return gathered(self.programs.head(weights, self.config, x, theirs, forced, around=self.variant.around))
