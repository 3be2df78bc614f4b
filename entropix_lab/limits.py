"""What still counts as rounding: a limit for every tap in every view, from the noise of correct variants.

FACTORS were chosen on 20 real texts of 16 to 320 tokens, where the nearest tap came to 0.61 of its limit in float32 and
to 0.57 in bfloat16; benchmarks/faults.py repeats it, and runs correct variants on 20 others.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .report import VIEWS, Row, View, split
from .taps import VARIANTS

# How far beyond the floor the median and the worst position may lie and still be rounding.
FACTORS = 3, 6
# How many times further from the truth than the other ours may be, at the median position. Sums of float32 differ by
# their order; rounded to bfloat16 they are all alike (1.001 was seen), and a rounding before the last one is not.
ALIKE = {"float32": 10, "bfloat16": 1.1}
# So few positions have no median to speak of.
FEW = 4
# What variants that reorder sums may add to the floor, in units of our own distance from the truth.
CAP = 3


class Seen(NamedTuple):
    """One tap in one view, (median, worst) over positions: ours against theirs, each variant against ours, and ours and
    theirs against the truth."""

    error: tuple[float, float]
    noise: tuple[tuple[float, float], ...]
    ours: tuple[float, float]
    theirs: tuple[float, float]


class Found(NamedTuple):
    """What is kept of one tap: numbers, no tensors. size: entries of a position; share: of the largest in its norm;
    own_layer: whether the local view ran on the other's own values; untapped: which inputs the op view did without."""

    tap: str
    size: int
    share: float
    own_layer: bool
    untapped: tuple[str, ...]
    views: dict[str, Seen]
    max_abs: float
    cosine: float
    worst_position: tuple[int, int]

    @classmethod
    def of(cls, tap, views, valid, own_layer, untapped):
        def spread(errors):
            errors = np.asarray(errors, np.float64)[valid]
            return float(np.median(errors)), float(np.max(errors))

        of_view = lambda direct, noise, ours, theirs: Seen(
            spread(direct[0]), tuple(map(spread, noise)), spread(ours), spread(theirs)
        )
        error, max_abs, cosine, share, size = views["accumulated"][0]
        worst = np.argmax(np.where(valid, error, -1))  # the first NaN, where there is one
        return cls(
            tap,
            int(size),
            float(np.max(np.asarray(share)[valid])),
            own_layer,
            untapped,
            {view: of_view(*found) for view, found in views.items()},
            float(np.max(np.asarray(max_abs)[valid])),
            float(np.min(np.asarray(cosine)[valid])),
            tuple(int(i) for i in np.unravel_index(worst, valid.shape)),
        )


def rows(found, dtype, metas, positions):
    """A Row for every Found, in order. metas: they were compared with Meta's model, in the same dtype. positions: how
    many were compared.

    Our distance from the truth is noise too, that of formulas and tables and not of sums alone. In bfloat16 it counts
    in the accumulated view only: elsewhere most of it is the rounding that both models share. Where no error travels an
    operation has one floor in all layers, the largest that was seen: the few roundings that fall differently in
    bfloat16 fall in any of them. Accumulated noise does not shrink with depth.
    """

    def noise(f, view):
        seen = f.views[view]
        floor = np.zeros(2)
        for variant, amount in zip(VARIANTS, map(_finite, seen.noise), strict=True):
            floor = np.maximum(floor, np.minimum(amount, CAP * _finite(seen.ours)) if variant.reorders else amount)
        with_ours = dtype == "float32" or view == "accumulated"
        return np.maximum(floor, _finite(seen.ours)) if with_ours else floor

    # where the other's own values are missing, errors do travel, and such a floor is for that tap alone
    key = lambda f, view: (view, split(f.tap)[1], (f.own_layer if view == "local" else not f.untapped) or f.tap)
    pooled, so_far = {}, {}
    for f in found:
        for view in ("local", "op"):
            pooled[key(f, view)] = np.maximum(noise(f, view), pooled.get(key(f, view), 0))
    share, group = 0.0, None
    for f in found:
        layer, op = split(f.tap)
        new_group = "embeddings" if f.tap == "tok_embeddings" else layer
        share, group = max(f.share, share if new_group == group else 0.0), new_group
        so_far[op] = np.maximum(np.maximum(noise(f, "accumulated"), so_far.get(op, 0)), pooled[key(f, "local")])
        floors = {"accumulated": so_far[op], "local": pooled[key(f, "local")], "op": pooled[key(f, "op")]}
        shares = {"accumulated": share, "local": share, "op": f.share}
        yield Row(
            f.tap,
            **{v: _view(f, v, floors[v], shares[v], dtype, metas, positions) for v in VIEWS},
            own_layer=f.own_layer,
            untapped=f.untapped,
            meta_error=f.views["accumulated"].theirs,
            our_error=f.views["accumulated"].ours,
            local_meta_error=f.views["local"].theirs,
            local_our_error=f.views["local"].ours,
            max_abs=f.max_abs,
            cosine=f.cosine,
            worst_position=f.worst_position,
        )


def _finite(pair):
    """What is not finite is no noise."""
    return np.where(np.isfinite(pair), pair, 0)


def _view(found, view, noise, share, dtype, metas, positions):
    """Limits of the (median, worst) position: FACTORS times the floor. The floor is never below one rounding of
    float32, in which every operation computes. In bfloat16 a value on the edge between two roundings may fall to either
    side: the limit allows one average entry of the median position, and the largest entry of the worst. Where errors
    travel it may be an entry of any earlier value of the layer (share is the largest of theirs), and if all tokens
    attend to it, all of them move: in the local view, whose floor holds few such flips, the median may then be as noisy
    as the worst."""
    seen, unit = found.views[view], float(jnp.finfo(jnp.float32).eps)
    floor = max(float(noise[0]), unit / 2), max(float(noise[1]), unit)
    limit = (FACTORS[0] if positions >= FEW else FACTORS[1]) * floor[0], FACTORS[1] * floor[1]
    if dtype == "bfloat16":
        ulp = float(jnp.finfo(jnp.bfloat16).eps)
        limit = max(limit[0], ulp / found.size**0.5), max(limit[1], ulp * share)
        limit = (limit[1] if view == "local" else limit[0]), limit[1]
    # Noise that ours alone has is not rounding as the other rounds: a product or a sum in a lower precision, say, which
    # the variants have too. Where errors travel this is asked of Meta's own float32 only.
    asked = not found.untapped if view == "op" else metas and dtype == "float32"
    further = max(seen.ours[0], unit) / max(seen.theirs[0], unit) if asked else 0.0
    excess = max(*(e / at for e, at in zip(seen.error, limit, strict=True)), (further - 1) / (ALIKE[dtype] - 1))
    return View(seen.error, floor, limit, float(excess) if np.isfinite(excess) else float("inf"), further)
