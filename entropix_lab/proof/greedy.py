"""Free-running greedy decoding beside another model's, token for token; where the two part, is it a tie?"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import verdict
from ..generation.generate import generate
from ..llama.sharding import gathered
from .compare import reference_for
from .measure import pair_noise
from .passes import Pass, whole_taps
from .report import MARGIN
from .variants import VARIANTS


class Decoded(NamedTuple):
    """One prompt. tokens: how many both models decoded; parted: the indices at which ours chose another token than the
    reference, after the same tokens; margins: there, how far the logits of the two tokens lie apart, in ours; noise:
    what rounding does to this difference; flips: how many argmaxes of a correct variant of ours are not ours', the most
    of any variant, where they were looked at."""

    tokens: int
    parted: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    flips: int = 0

    @property
    def first(self) -> int | None:
        """The first index at which the two differ, None where they do nowhere."""
        return min(self.parted, default=None)

    @property
    def ties(self) -> int:
        """How many of them rounding explains."""
        return sum(margin <= MARGIN * noise for margin, noise in zip(self.margins, self.noise, strict=True))


@dataclass(frozen=True, repr=False)
class Greedy:
    """What compare_greedy returns, a Decoded to each prompt."""

    name: str
    dtype: str
    rows: tuple[Decoded, ...]

    @property
    def ties_allowed(self) -> int:
        """As many ties as rounding makes: those of correct variants over the same prompts that part, and two standard
        deviations of such a count."""
        flips = sum(row.flips for row in self.rows)
        return int(np.ceil(flips + 2 * np.sqrt(flips + 1)))

    @property
    def passed(self) -> bool:
        ties = sum(row.ties for row in self.rows)
        return ties == sum(len(row.parted) for row in self.rows) and ties <= self.ties_allowed

    @property
    def verdict(self) -> str:
        equal = sum(not row.parted for row in self.rows)
        longest = max(row.tokens for row in self.rows)
        ties = sum(row.ties for row in self.rows)
        claims = [f"{equal} of {len(self.rows)} prompts equal to Meta's over {longest} tokens"]
        claims.append(f"{ties} ties within rounding" + ("" if ties <= self.ties_allowed else ", too many"))
        for i, row in enumerate(self.rows):
            apart = [(at, m) for at, m, n in zip(row.parted, row.margins, row.noise, strict=True) if m > MARGIN * n]
            if apart:
                claims.append(f"prompt {i} parts at token {apart[0][0]} where the margin is {apart[0][1]:.1e}")
        return verdict.line(self.passed, f"{self.name} {self.dtype} greedy", *claims)

    def __repr__(self):
        return self.verdict


def compare_greedy(model, reference, prompts, max_new_tokens=64, **options) -> Greedy:
    """Greedy decoding of each prompt by both models, token for token.

    reference: a Reference of the same checkpoint and dtype, or a folder or name to load one from. options are
    generate's, without a sampler. Where the two choose different tokens, the reference's must lie among ours within
    what rounding does to these two logits (measured: correct variants of ours over the same tokens). It is a tie then,
    and ours goes on from the reference's tokens. More ties than the variants have among themselves are no rounding.
    Raises ValueError where the two cannot be compared.
    """
    if "sampler" in options:
        raise ValueError("compare_greedy has no sampler: Meta's model decodes greedily")
    rows = model.prompt_rows(prompts)
    longest = max(map(len, rows))
    reference = reference_for(model, reference, 1, longest + max_new_tokens)
    options = {"stop": ()} | options
    ours = generate(model, rows, max_new_tokens, **options)
    decoded = []
    for row, mine in zip(rows, ours, strict=True):
        decoded.append(_decoded(model, row, reference.greedy(row, len(mine.tokens)), mine, options))
    return Greedy(model.name, model.dtype, tuple(decoded))


def _decoded(model, row, theirs, ours, options) -> Decoded:
    """ours is decoded anew from theirs past each tie; the first difference that is none ends it."""
    found, at, rounding = Decoded(len(theirs)), 0, None
    while (differ := np.flatnonzero(ours.tokens != theirs[at : at + len(ours.tokens)])).size:
        i = int(differ[0])
        at += i
        rounding = rounding or _Rounding(model, row, theirs)
        mine, noise = int(ours.tokens[i]), rounding.noise(at, int(ours.tokens[i]), int(theirs[at]))
        # the decoding step's own margin, and what the whole forward says of the same two tokens
        margin = max(float(ours.margins[i]), abs(float(rounding.logits[at, mine] - rounding.logits[at, theirs[at]])))
        found = Decoded(
            found.tokens, (*found.parted, at), (*found.margins, margin), (*found.noise, noise), rounding.flips
        )
        at += 1
        if found.ties < len(found.parted) or at == len(theirs):
            break
        ours = generate(model, [np.concatenate([row, theirs[:at]])], len(theirs) - at, **options)[0]
    return found


class _Rounding:
    """Logits of a prompt and the reference's tokens after it, and what rounding does to them."""

    def __init__(self, model, row, theirs):
        tokens = np.concatenate([row, theirs])[:-1].astype(np.int32)
        steps = slice(len(row) - 1, len(tokens))
        tokens = np.pad(tokens, (0, -len(tokens) % 64))[None]
        self.logits = np.asarray(whole_taps(model, tokens)[0]["output"])[0, steps]
        self.variants = [_variant_logits(model, tokens, v)[steps] for v in VARIANTS]
        self.flips = max(int((v.argmax(-1) != self.logits.argmax(-1)).sum()) for v in self.variants)

    def noise(self, at, a, b) -> float:
        of = lambda x: x[at : at + 1]
        return float(pair_noise(of(self.logits), [of(v) for v in self.variants], np.array([a]), np.array([b]))[0])


def _variant_logits(model, tokens, variant) -> np.ndarray:
    run = Pass(model.config, tokens.shape, variant)
    x = gathered(model.weights.tok_embeddings[tokens])
    for w in model.weights.layer_weights:
        x, _ = run.layer(w, x, {}, False)
    return np.asarray(run.head(model.weights, x, {}, False)["output"])[0]
