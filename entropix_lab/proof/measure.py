"""How far two values of one name lie apart, position by position, and what that says of their logits."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..llama.model import at_least_float32
from ..llama.sharding import gathered
from .pieces import token_axis
from .report import ATOL, RTOL, Output

UNIT = float(jnp.finfo(jnp.float32).eps)
ENTRIES = 1 << 20  # of a tap that are widened at once


class Samples:
    """The positions [B,T] of a comparison. Tokens that come many times are one sample each: what is computed of them
    is nearly the same number, with the same rounding."""

    def __init__(self, tokens, valid):
        self.valid = valid
        ids, inverse, counts = np.unique(tokens[valid], return_inverse=True, return_counts=True)
        self.weights, self.different = 1 / counts[inverse], len(ids)

    def of(self, errors):
        """(median, worst) of errors [B,T]."""
        errors = np.asarray(errors, np.float64)[self.valid]
        order = errors.argsort()  # NaN comes last
        worst = float(errors[order[-1]])
        if math.isnan(worst):
            return worst, worst
        share = self.weights[order].cumsum()
        low, high = share.searchsorted((share[-1] / 2 * (1 - 1e-9), share[-1] / 2 * (1 + 1e-9)))
        return float(errors[order[low]] + errors[order[high]]) / 2, worst


# A score so far below its row's largest weighs exp(-100) or less: masked, whatever stands there.
DEAD, ALIVE = 100, 50


def relative_error(name, x, y) -> np.ndarray:
    """||x - y|| / ||y|| of every position, [B,T], in NumPy's float64; infinite where one masks what the other sees or x
    alone is infinite, 1 where something stands for zero, NaN where there is one.

    Each position has its own norm: a few massive activations would hide errors elsewhere. Scores are compared where
    neither is masked, by -inf or by a large negative number. One wrong logit drowns in a norm over the vocabulary V:
    the largest error times sqrt(V)/5 counts too. The largest of so many rounding errors is about five times their root
    mean square.
    """

    def of(x, y):
        x, y, same = _seen(name, x, y)
        with np.errstate(invalid="ignore"):  # what is infinite is reported as such
            return [_relative(name, x - y, _norm(name, y), same)]

    return _by_positions(name, of, x, y)[0]


def _by_positions(name, of, x, y):
    """of(x, y), a list of arrays [R,t], for some positions t at a time: float64 copies of a whole tap of a long text
    would take gigabytes, and longer than those that stay in a processor's cache."""
    axis, x, y = token_axis(name), np.asarray(x), np.asarray(y)
    step = max(1, ENTRIES * x.shape[axis] // x.size)
    cut = lambda z, i: z[(slice(None),) * axis + (slice(i, i + step),)]
    parts = [of(cut(x, i), cut(y, i)) for i in range(0, x.shape[axis], step)]
    return [np.concatenate(pieces, 1) for pieces in zip(*parts, strict=True)]


def _seen(name, x, y):
    """(x, y, same): in float64, scores 0 where either is masked; whether both mask the same of a position."""
    x, y = (np.asarray(z, np.float64) for z in (x, y))
    if not name.endswith(".scores"):  # the only tap with a mask in it
        return x, y, True
    below = lambda z, by: z < z.max(-1, keepdims=True) - by
    dead_x, dead_y = below(x, DEAD), below(y, DEAD)
    same = ~((dead_x & ~below(y, ALIVE)) | (dead_y & ~below(x, ALIVE))).any(over(name, y))
    return *(np.where((dead_x | dead_y) & ~np.isnan(z), 0, z) for z in (x, y)), same


def _relative(name, off, norm_y, same):
    error = _norm(name, off)
    if name == "output":
        error = np.maximum(error, np.abs(off).max(-1) * (off.shape[-1] ** 0.5 / 5))
    return np.where(same, error / np.where(norm_y == 0, np.where(error == 0, 1, error), norm_y), np.inf)


def _norm(name, x):
    return np.sqrt(_products(name, x, x))


def _products(name, x, y):
    """The scalar product of x and y at every position."""
    axes, summed = list(range(x.ndim)), over(name, x)
    return np.einsum(x, axes, y, axes, [axis for axis in axes if axis not in summed])


def over(name, x):
    """The axes of a tap that belong to one position."""
    return tuple(axis for axis in range(1, x.ndim) if axis != token_axis(name))


def errors(x, y) -> dict[str, np.ndarray]:
    """{op: relative_error of x against y [R,T]} of dicts by op; y may have more ops, x fewer rows, which then stand
    for several times as many."""
    return {op: relative_error(op, _repeated(of, y[op]), y[op]) for op, of in x.items()}


def _repeated(x, y):
    """x with its rows again and again, until they are as many as those of y."""
    return x if len(x) == len(y) else np.concatenate([np.asarray(x)] * (len(y) // len(x)))


class Direct(NamedTuple):
    """Ours against theirs, all [R,T]: the relative error, the largest absolute difference, the cosine, the share of the
    largest entry in the norm, whether ours and whether theirs is no number; and the entries of a position. Of scores
    what neither masks."""

    error: np.ndarray
    max_abs: np.ndarray
    cosine: np.ndarray
    share: np.ndarray
    nan_ours: np.ndarray
    nan_theirs: np.ndarray
    size: int


def direct_of(ours, theirs) -> dict[str, Direct]:
    """{op: Direct} of dicts by op; the rows of theirs stand for several times as many of ours."""
    return {op: _direct(op, x, _repeated(theirs[op], x)) for op, x in ours.items()}


def _direct(name, x, y):
    def of(x, y):
        x, y, same = _seen(name, x, y)
        norm_x, norm_y = _norm(name, x), _norm(name, y)
        largest = lambda z: np.abs(z).max(over(name, z))
        with np.errstate(invalid="ignore"):
            off, nan = x - y, (np.isnan(norm_x), np.isnan(norm_y))
            cosine = _products(name, x, y) / np.maximum(norm_x * norm_y, 1e-74)
            share = largest(y) / np.maximum(norm_y, 1e-37)
            return [_relative(name, off, norm_y, same), largest(off), cosine, share, *nan]

    return Direct(*_by_positions(name, of, x, y), math.prod(x.shape[axis] for axis in over(name, x)))


def ratios(samples, ours, theirs, largest):
    """Our distance from the truth over theirs, (median, worst) of positions. ours, theirs, largest: [B,T].

    theirs is the other's distance or the noise of correct variants, the larger: the other may be more exact than
    float32. At the worst position it counts as no smaller than its median, nor than the rounding of the position's
    largest entry (largest).
    """
    (our_median, _), (their_median, _) = samples.of(ours), samples.of(theirs)
    least = max(their_median, UNIT)
    with np.errstate(invalid="ignore"):  # infinite by infinite, of padding or of what is reported as such
        worst = np.maximum(ours, UNIT) / np.maximum(theirs, np.maximum(least, largest))
    return max(our_median, UNIT) / least, samples.of(worst)[1]


def low_precision(x, numbers) -> str:
    """The name of the narrower dtype of a tap [B,T,...], or, where numbers, that of the dtype which holds
    all of them; "" where it has none."""
    if x.dtype in (jnp.float16, jnp.bfloat16):
        return str(x.dtype)
    if not numbers or x.dtype != np.float32:
        return ""
    some = np.asarray(x).ravel()[:4096]
    some = some[np.isfinite(some) & (some != 0) & (some > -1e4)]
    some = some[np.abs(some) < 6e4]  # float16 ends there
    for dtype in (jnp.bfloat16, jnp.float16):
        if some.size >= 64 and np.array_equal(some, some.astype(dtype).astype(np.float32)):
            return f"numbers of {jnp.dtype(dtype).name}"
    return ""


def other_tokens(model, tokens, valid, theirs) -> str:
    """In words, where the reference's embeddings [B,T,D] are those of other tokens; "" where they are not."""
    table = np.asarray(at_least_float32(gathered(model.weights.tok_embeddings)))
    theirs = np.asarray(theirs, np.float32)
    differ = valid & ~np.isclose(theirs, table[tokens], rtol=1e-3, atol=1e-6).all(-1)
    if not differ.any():
        return ""
    row, at = np.argwhere(differ)[0]
    nearest = int(np.argmin(np.abs(table - theirs[row, at]).sum(-1)))
    if not np.allclose(table[nearest], theirs[row, at], rtol=1e-2, atol=1e-5):
        return ""
    return (
        f"The reference's tokens differ: at token {at} of row {row} it has the embedding of id {nearest}, the prompt "
        f"has {tokens[row, at]} (another prompt's taps, or a shifted vocabulary)."
    )


def _log_softmax(x):
    with np.errstate(invalid="ignore"):  # an infinite logit has none, and is reported as such
        x = x.astype(np.float64)
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(p, *others) -> np.ndarray:
    """KL(softmax p || softmax q) for each q of others, all logits [n,V]: nats [len(others),n], in float64."""
    step, parts = max(1, ENTRIES // p.shape[-1]), []
    for i in range(0, len(p), step):
        x = _log_softmax(p[i : i + step])
        weights = np.exp(x)
        parts.append([(weights * (x - _log_softmax(q[i : i + step]))).sum(-1) for q in others])
    return np.maximum(np.concatenate(parts, -1), 0)


def pair_noise(plain, others, a, b) -> np.ndarray:
    """What rounding does to the difference of the logits a and b [n] of each position: the largest that any of others
    [n,V] moves either of them from plain [n,V], and never less than its root mean square over the vocabulary."""
    at, noise = np.arange(len(a)), np.zeros(len(a))
    for other in others:
        off = np.abs(other.astype(np.float32) - plain)
        typical = np.sqrt(np.mean(off**2, -1))
        noise = np.maximum(noise, np.maximum(off[at, a], typical) + np.maximum(off[at, b], typical))
    return noise


def logits_of(ours, theirs, truth, plain, variants) -> Output:
    """The Output of logits [n,V]: ours, theirs, of the truth, and of the run as it is (plain). variants: a list of the
    same of correct variants; with the truth they show what rounding does."""
    variants = [*variants, truth]
    (_, ours_first), (_, theirs_first) = (map(np.asarray, jax.lax.top_k(x, 5)) for x in (ours, theirs))
    differ = np.flatnonzero(ours_first[:, 0] != theirs_first[:, 0])
    a, b = theirs_first[differ, 0], ours_first[differ, 0]
    margins = theirs[differ, a] - theirs[differ, b]
    noise = pair_noise(plain[differ], [v[differ] for v in variants], a, b)
    (divergence,), floor = kl(theirs, ours), float(kl(plain, *variants).max())
    close = lambda x, y: bool(np.allclose(x, y, rtol=RTOL, atol=ATOL))
    return Output(
        allclose=close(ours, theirs),
        meta_allclose_to_truth=close(theirs, truth),
        positions=len(ours),
        argmax_equal=len(ours) - len(differ),
        margins_where_different=tuple(map(float, margins)),
        noise_where_different=tuple(map(float, noise)),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        kl_floor=floor,
        top5_overlap=float(np.mean((ours_first[:, :, None] == theirs_first[:, None]).any(-1))),
    )
