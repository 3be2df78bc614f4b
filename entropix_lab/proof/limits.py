"""What still counts as rounding: a limit for every tap in every view, from the noise of correct variants.

The variants, the run as it is and the truth are made of model.py's own functions: a function on trial cannot move what
it is judged by. The factors were chosen on 20 real texts of 16 to 320 tokens; benchmarks/faults.py repeats it, and runs
correct variants on 20 others.
"""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .measure import UNIT
from .report import VIEWS, Row
from .taps import split

# How far beyond the floor the median and the worst position may lie and still be rounding.
FACTORS = 3, 6
# Our distance from the truth over the other model's: how large it may be, at the median and at the worst position.
# Another order of a sum changes most float32 results. It changes few bfloat16 ones; an extra rounding changes those.
ALIKE = {"float32": (10, 30), "bfloat16": (1.1, 1.3)}
# With fewer different tokens than this a median means little.
FEW = 4
# Our distance from the truth counts as noise, up to this many times the noise of the variants.
CAP = 10
# The truth is in doubt where float32 lies further from it than this many times the noise of the variants.
DOUBT = 100


class Noise(NamedTuple):
    """Relative errors of one tap in one view, (median, worst) over positions. variants: each from the run as it is;
    ours, theirs, plain: of our run, the other model and the run as it is, from the truth."""

    variants: tuple[tuple[float, float], ...]
    ours: tuple[float, float]
    theirs: tuple[float, float]
    plain: tuple[float, float]


class Found(NamedTuple):
    """A Row without its limits, and what they are made of. noise: by view; size: entries of a position; share: of the
    largest entry in the norm of its position; gaps: whether an earlier value of the layer has no tap; wide: (median,
    worst) of a bfloat16 model in float32 from the truth, None elsewhere."""

    row: Row
    noise: dict[str, Noise]
    size: int
    share: float
    gaps: bool
    wide: tuple[float, float] | None


def measured(tap, views, noise, direct, valid, own_layer, missing, whole) -> Row:
    """A Row without its limits. views: {view: View} and whole: a View or None, both without limits; noise: {view:
    Noise}; direct: the measure.Direct of the accumulated view; valid [B,T]: the positions that are compared."""
    worst = np.argmax(np.where(valid, direct.error, -1))  # the first NaN, where there is one
    nan = [who for who, x in (("ours", direct.nan_ours), ("the reference", direct.nan_theirs)) if np.any(x[valid])]
    return Row(
        tap,
        **views,
        whole=whole,
        own_layer=own_layer,
        missing_inputs=missing,
        truth_ratio=0.0,
        meta_error=noise["accumulated"].theirs,
        our_error=noise["accumulated"].ours,
        local_meta_error=noise["local"].theirs,
        local_our_error=noise["local"].ours,
        max_abs=float(np.max(direct.max_abs[valid])),
        cosine=float(np.min(direct.cosine[valid])),
        worst_position=tuple(int(i) for i in np.unravel_index(worst, valid.shape)),
        nan=" and ".join(nan),
    )


def rows(found, dtype, metas, samples):
    """A Row for every Found, in order. metas: they were compared with Meta's model, in the same dtype.

    Our distance from the truth is noise too: it holds the rounding of formulas and tables. In bfloat16 it counts only
    where errors travel; elsewhere both models share most of it. Where no error travels, an operation has one floor for
    all layers, the largest that was seen. In float32 it is at most three times the median layer's. Accumulated noise
    does not shrink with depth.
    """

    def travels(f, view):
        """Whether a value in between was not tapped: another port need not have rounded it."""
        return {"accumulated": True, "local": f.gaps or not f.row.own_layer, "op": bool(f.row.missing_inputs)}[view]

    def noise(f, view):
        floor = np.max([_finite(amount) for amount in f.noise[view].variants], axis=0)
        if dtype == "float32" or travels(f, view):
            cap = CAP * np.maximum(floor, UNIT) if dtype == "float32" else np.inf
            floor = np.maximum(floor, np.minimum(_finite(f.noise[view].plain), cap))
        return floor

    # without the other's own values errors travel, and the floor holds for that tap alone
    key = lambda f, view: (view, split(f.row.tap)[1], travels(f, view) and f.row.tap)
    of_layers, so_far = {}, {}
    for f in found:
        for view in ("local", "op"):
            of_layers.setdefault(key(f, view), []).append(noise(f, view))
    # float32 rounds everywhere alike; bfloat16 flips a few entries, in some layers none
    most = lambda n: 3 * np.median(n, 0) if dtype == "float32" else np.inf
    pooled = {k: np.minimum(n, most(n)).max(0) for k, n in of_layers.items()}
    share, group = 0.0, None
    for f in found:
        layer, op = split(f.row.tap)
        new_group = "embeddings" if f.row.tap == "tok_embeddings" else layer
        share, group = max(f.share, share if new_group == group else 0.0), new_group
        floors = {view: np.maximum(noise(f, view), pooled[key(f, view)]) for view in ("local", "op")}
        so_far[op] = np.maximum(np.maximum(noise(f, "accumulated"), so_far.get(op, 0)), floors["local"])
        floors["accumulated"] = so_far[op]
        shares = {"accumulated": share, "local": share, "op": f.share}
        views = {v: _view(f, v, floors[v], shares[v], dtype, metas, samples) for v in VIEWS}
        whole = f.row.whole and _whole_view(f, floors["local"], dtype, samples)
        yield replace(f.row, **views, whole=whole, truth_ratio=_doubt(f, dtype, views["op"]))


def _finite(pair):
    """NaN and infinity do not count as noise."""
    return np.where(np.isfinite(pair), pair, 0)


def _norm_sum(tap, size):
    """Limits of the (median, worst) position for an RMSNorm: a port may add the D squares one by one. The rounding of
    such a sum has a standard deviation of about sqrt(D)/3 half units, half of that in its root, and scales all entries
    of the position alike (Higham 2002, chapter 4)."""
    deviation = size**0.5 / 6 * UNIT / 2
    return (1.3 * deviation, 5 * deviation) if tap.endswith("norm") else (0.0, 0.0)


def _view(found, view, noise, share, dtype, metas, samples):
    """Limits of the (median, worst) position: FACTORS times the floor. The floor is never below one rounding of
    float32, in which every operation computes. In bfloat16 a value on the edge between two roundings may fall to either
    side: the limit allows one average entry of the median position, and the largest entry of the worst. Where errors
    travel it may be an entry of any earlier value of the layer (share is the largest of theirs), and if all tokens
    attend to it, all of them move: in the local view, whose floor holds few such flips, the median may then be as noisy
    as the worst."""
    seen = getattr(found.row, view)
    floor = max(float(noise[0]), UNIT / 2), max(float(noise[1]), UNIT)
    limit = (FACTORS[0] if samples.different >= FEW else FACTORS[1]) * floor[0], FACTORS[1] * floor[1]
    limit = tuple(float(max(pair)) for pair in zip(limit, _norm_sum(found.row.tap, found.size), strict=True))
    if dtype == "bfloat16":
        limit = _one_flip(limit, found.size, share)
        limit = (limit[1] if view == "local" else limit[0]), limit[1]
    # Is ours much less exact than the other? Then it computes in a lower precision. Where errors travel, only the
    # median is asked, and only of Meta's float32.
    if view == "op" and found.row.own_input:
        asked = seen.error_ratio
    else:
        asked = (seen.error_ratio[0], 0.0) if metas and dtype == "float32" else (0.0, 0.0)
    beyond = [(r - 1) / (most - 1) for r, most in zip(asked, ALIKE[dtype], strict=True)]
    return _judged(seen, floor, limit, asked, beyond)


def _one_flip(limit, size, share):
    ulp = float(jnp.finfo(jnp.bfloat16).eps)
    return max(limit[0], ulp / size**0.5), max(limit[1], ulp * share)


def _whole_view(found, noise, dtype, samples):
    """The same functions in another program, from the same stream into the layer: a CPU was seen to give the same bits.
    In bfloat16 an entry may flip, but not at the median position."""
    floor = max(float(noise[0]), UNIT / 2), max(float(noise[1]), UNIT)
    limit = FACTORS[0] * floor[0], FACTORS[1] * floor[1]
    if dtype == "bfloat16":
        flip = _one_flip((0, 0), found.size, found.share)
        limit = max(floor[0], flip[0] / 2), max(floor[1], flip[1])
    if samples.different < FEW:
        limit = limit[1], limit[1]
    return _judged(found.row.whole, floor, limit)


def _judged(view, floor, limit, asked=(0.0, 0.0), beyond=()):
    view = replace(view, floor=floor, limit=limit, error_ratio=asked)
    ratio = max((view.error_over_limit, *beyond))
    return replace(view, limit_ratio=float(ratio) if np.isfinite(ratio) else float("inf"))


def _doubt(found, dtype, op):
    """The truth_ratio of a Row, on the other's own inputs: of our untouched run and the other, the nearer counts."""
    if found.row.missing_inputs or found.row.nan:
        return 0.0
    if dtype == "bfloat16":  # its own roundings are far larger than any mistake that matters there
        if op.limit_ratio > 1:  # the models do not agree: the other may be as near to the truth as it can
            return 0.0
        return float(np.max(_finite(found.wide))) / (2.0**-11) if found.wide else 0.0
    seen = found.noise["op"]
    most = DOUBT * np.maximum(np.max([_finite(n) for n in seen.variants], axis=0), UNIT)
    return float(np.min([np.max(_finite(who) / most) for who in (seen.plain, seen.theirs)]))
