"""The threshold sampler: four quadrants of entropy and varentropy, and what each does."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from .draw import draw, keep, likeliest
from .plain import static

BRANCHES = ("LELV", "HELV", "LEHV", "HEHV", "adaptive")  # low or high entropy, low or high varentropy; none of them
MEASURED = ("entropy", "varentropy", "attention_entropy", "attention_varentropy")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adaptive:
    """The threshold sampler of github.com/xjdr-alt/entropix as it was evidently meant, with numbers after its revision
    cceeb84 (2024-10-07); those after the last static one, 9d41be6 (2024-10-31), are in NUMBERS. What these revisions
    did themselves is in faithful/static.py.

    Of five branches the first that fits is taken, row by row. Entropies are in bits, as there:
        LELV      H < low, V < low                    the likeliest token
        HELV      H > high, V < low                   ask: the clarifying token; draw if it was the last one already
        LEHV      H < high, V > high                  explore: warmer, more candidates
        HEHV      H > medium, V > high                resample: hot, narrower nucleus
        adaptive  otherwise                           temperature grows with H and V; the best of several candidates
    LEHV comes first, so HEHV sees no entropy below `high`. Left out: agreement and interaction strength, whose
    published values were those of an empty cache (practically 0); and 9d41be6's adaptive temperature, which fell as the
    entropy rose, against every other rule here: both versions use cceeb84's.
    """

    low_entropy: float = 0.1  # bits
    medium_entropy: float = 3.0  # bits
    high_entropy: float = 5.0  # bits
    low_varentropy: float = 0.1  # bits^2
    high_varentropy: float = 5.0  # bits^2
    # those that are on; a row of one that is off goes to "adaptive"
    quadrants: tuple[str, ...] = static(default=BRANCHES[:4])

    # hA: mean over the heads of one layer of their attention's entropy; vA: its variance over the heads. The published
    # numbers belong to attention over unwritten cache slots, so they are off until attention=True.
    attention: bool = static(default=False)
    attention_layer: int = static(default=-1)
    low_attention_entropy: float | None = None  # bits; LELV, HELV and LEHV want hA below it
    high_attention_entropy: float | None = None  # bits; HEHV wants hA above it
    low_attention_varentropy: float | None = None  # bits^2; LELV and HELV want vA below it
    high_attention_varentropy: float | None = None  # bits^2; LEHV and HEHV want vA above it

    temperature: float = 0.666
    top_p: float = 0.90
    top_k: int = static(default=27)
    min_p: float = 0.03

    clarifying: str | None = static(default=" ...")  # must be one token of the model; None never asks
    clarifying_id: int | None = static(default=None)  # its id, set by bind unless given; without it HELV draws
    helv_temperature: float = 1.3  # times temperature, as all temperatures below
    helv_temperature_attention_entropy: float = 0.2  # more to each bit of hA
    helv_max_temperature: float = 1.5
    lehv_temperature: float = 1.2
    lehv_max_temperature: float = 1.5
    lehv_top_k: float = static(default=1.5)  # times top_k
    hehv_temperature: float = 2.0
    hehv_temperature_attention_varentropy: float = 0.5  # more to each bit^2 of vA
    hehv_min_temperature: float = 2.0
    hehv_max_temperature: float = math.inf
    hehv_top_p_attention_entropy: float = 0.2  # less top_p to each bit of hA
    hehv_min_top_p: float = 0.5

    adaptive_temperature_entropy: float = 0.3  # more to each bit of H
    adaptive_temperature_varentropy: float = 0.3  # more to each bit^2 of V
    adaptive_temperature_attention: float = 0.2  # more to each bit of hA and bit^2 of vA
    adaptive_top_p_attention_varentropy: float = 0.1  # relative growth to each bit^2 of vA
    adaptive_min_p_entropy: float = 0.5  # relative decline to each bit of H
    adaptive_min_p_varentropy: float = 0.5  # relative decline to each bit^2 of V
    adaptive_candidates: int = static(default=5)
    # A candidate scores its log-probability at temperature 1, less this many times |surprisal - entropy| (nats). The
    # published score added the same number to all candidates, which is 0 here: the likeliest of them wins.
    typicality: float = 0.0

    @property
    def needs(self):
        return ("attention_entropy",) if self.attention else ()

    def bind(self, tokenizer):
        """This sampler with the id of the clarifying token; ValueError when the string is not one token, or there is
        no tokenizer to ask."""
        if self.clarifying_id is not None or self.clarifying is None or "HELV" not in self.quadrants:
            return self
        if tokenizer is None:
            raise ValueError(
                f"without a tokenizer the id of clarifying={self.clarifying!r} is unknown: "
                "adaptive(clarifying_id=...) gives it, adaptive(clarifying=None) never asks"
            )
        ids = tokenizer.encode(self.clarifying, bos=False)
        if len(ids) != 1:
            raise ValueError(f"clarifying={self.clarifying!r} must be one token of this model, it is {len(ids)}")
        return replace(self, clarifying_id=ids[0])

    def init(self, batch):
        return jnp.full(batch, -1, jnp.int32)  # the last token of each row

    def measure(self, metrics):
        """H, V, hA, vA [B] in bits and bits^2; the last two are 0 when attention is off."""
        H, V = metrics["entropy"] / math.log(2), metrics["varentropy"] / math.log(2) ** 2
        if not self.attention:
            return H, V, jnp.zeros_like(H), jnp.zeros_like(H)
        heads = metrics["attention_entropy"][:, self.attention_layer] / math.log(2)
        return H, V, heads.mean(-1), heads.var(-1)

    def wanted(self):
        """What each branch that is on wants, {branch: [(name, "<" or ">", bound in bits or bits^2)]}."""
        H, V, hA, vA = MEASURED
        calm = (hA, "<", self.low_attention_entropy), (vA, "<", self.low_attention_varentropy)
        flat, wide = (V, "<", self.low_varentropy), (V, ">", self.high_varentropy)
        split = (vA, ">", self.high_attention_varentropy)
        every = {
            "LELV": [(H, "<", self.low_entropy), flat, *calm],
            "HELV": [(H, ">", self.high_entropy), flat, *calm],
            "LEHV": [(H, "<", self.high_entropy), wide, (hA, "<", self.low_attention_entropy), split],
            "HEHV": [(H, ">", self.medium_entropy), wide, (hA, ">", self.high_attention_entropy), split],
        }
        asked = MEASURED if self.attention else MEASURED[:2]
        given = lambda wants: [want for want in wants if want[0] in asked and want[2] is not None]
        return {branch: given(wants) for branch, wants in every.items() if branch in self.quadrants}

    def branch(self, H, V, hA, vA):
        """Indices [B] into BRANCHES: the first that is on and fits."""
        measured = dict(zip(MEASURED, (H, V, hA, vA), strict=True))
        holds = lambda name, sign, bound: measured[name] < bound if sign == "<" else measured[name] > bound
        all_hold = lambda wants: jnp.all(jnp.stack([holds(*want) for want in wants]), 0)
        fits = {branch: all_hold(wants) for branch, wants in self.wanted().items()}
        never, always = jnp.zeros(H.shape, bool), jnp.ones(H.shape, bool)
        return jnp.argmax(jnp.stack([*(fits.get(branch, never) for branch in BRANCHES[:4]), always]), 0)

    @property
    def thresholds(self):
        """What ``branch`` wants, as ``wanted``, with bounds in nats and nats^2."""
        unit = lambda name: math.log(2) ** (2 if name.endswith("varentropy") else 1)
        in_nats = lambda name, sign, bound: (name.replace("_", " "), sign, float(bound) * unit(name))
        return {branch: [in_nats(*want) for want in wants] for branch, wants in self.wanted().items()}

    def parameters(self, branch, H, V, hA, vA):
        """temperature, top_p, top_k, min_p [B] that a branch draws with."""
        T, one = self.temperature, jnp.ones_like(H)
        choose = lambda *of_branch: jnp.choose(branch, [one * x for x in of_branch], mode="clip")
        warm = (
            1
            + self.adaptive_temperature_entropy * H
            + self.adaptive_temperature_varentropy * V
            + self.adaptive_temperature_attention * (hA + vA)
        )
        hot = self.hehv_temperature + self.hehv_temperature_attention_varentropy * vA
        asking = self.helv_temperature + self.helv_temperature_attention_entropy * hA
        narrow = jnp.maximum(self.top_p - self.hehv_top_p_attention_entropy * hA, self.hehv_min_top_p)
        wide = jnp.clip(self.top_p * (1 + self.adaptive_top_p_attention_varentropy * vA), 0.1, 1.0)
        decline = 1 - self.adaptive_min_p_entropy * H - self.adaptive_min_p_varentropy * V
        return {
            "temperature": choose(
                T,
                jnp.minimum(T * asking, self.helv_max_temperature),
                jnp.minimum(T * self.lehv_temperature, self.lehv_max_temperature),
                jnp.clip(T * hot, self.hehv_min_temperature, self.hehv_max_temperature),
                T * warm,
            ),
            "top_p": choose(self.top_p, self.top_p, self.top_p, narrow, wide),
            "top_k": choose(1, self.top_k, self._lehv_top_k, self.top_k, self.top_k).astype(jnp.int32),
            "min_p": choose(*[self.min_p] * 4, jnp.clip(self.min_p * decline, 0.01, 0.5)),
        }

    @property
    def _lehv_top_k(self):
        return max(5, int(self.top_k * self.lehv_top_k))

    def draw(self, logits, entropy, branch, params, keys):
        """Tokens [B] with the parameters of their branch; of the adaptive one the best of several candidates."""
        top, ids = likeliest(logits, max(self.top_k, self._lehv_top_k))
        column = {name: x[:, None] for name, x in params.items()}
        within = jnp.where(jnp.arange(top.shape[-1]) < column["top_k"], top / column["temperature"], -jnp.inf)
        probs = keep(jax.nn.softmax(within, -1), column["top_p"], column["min_p"])

        n = self.adaptive_candidates
        row_keys = jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys)  # [n,B]
        drawn = jax.vmap(draw, (None, 0), 1)(probs, row_keys)  # [B,n]
        logp = jnp.take_along_axis(top, drawn, -1) - jax.nn.logsumexp(logits, -1, keepdims=True)
        score = logp - self.typicality * jnp.abs(-logp - entropy[:, None])
        best = jnp.where(branch == BRANCHES.index("adaptive"), jnp.argmax(score, -1), 0)
        chosen = jnp.take_along_axis(drawn, best[:, None], -1)
        return jnp.take_along_axis(ids, chosen, -1)[:, 0]

    def __call__(self, logits, metrics, state, keys):
        measured = self.measure(metrics)
        branch = self.branch(*measured)
        params = self.parameters(branch, *measured)
        token = self.draw(logits, metrics["entropy"], branch, params, keys)
        if self.clarifying_id is not None:
            ask = (branch == BRANCHES.index("HELV")) & (state != self.clarifying_id)
            token = jnp.where(ask, self.clarifying_id, token)
        return token, token, {"branch": branch, **params}


NUMBERS = {
    "cceeb84": {},
    "9d41be6": dict(
        low_entropy=0.8,
        medium_entropy=1.7,
        high_entropy=2.5,
        low_varentropy=0.4,
        high_varentropy=1.2,
        low_attention_entropy=1.0,
        high_attention_entropy=2.0,
        low_attention_varentropy=0.3,
        high_attention_varentropy=0.8,
        temperature=0.8,
        top_k=40,
        min_p=0.05,
        lehv_temperature=1.0,
        lehv_top_k=1.0,
        hehv_temperature=0.3,
        hehv_temperature_attention_varentropy=0.25,
        hehv_min_temperature=0.0,
        hehv_max_temperature=2.0,
        hehv_top_p_attention_entropy=0.3,
        adaptive_top_p_attention_varentropy=0.0,
        adaptive_min_p_entropy=0.0,
        adaptive_min_p_varentropy=0.2,
    ),
}


def adaptive(version: str = "cceeb84", **changes) -> Adaptive:
    """The threshold sampler with the numbers after a revision ("cceeb84" or "9d41be6") and what is changed of them, by
    the names of Adaptive's fields. Raises ValueError for another revision and for an unknown quadrant."""
    if version not in NUMBERS:
        raise ValueError(f"version {version!r} is unknown: there are {', '.join(NUMBERS)}")
    sampler = Adaptive(**NUMBERS[version] | changes)
    if unknown := set(sampler.quadrants) - set(BRANCHES[:4]):
        raise ValueError(f"unknown quadrants {sorted(unknown)}: they are {', '.join(BRANCHES[:4])}")
    return sampler
