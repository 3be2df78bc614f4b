"""Where the model stands at a fork: several continuations as rows of one batch, and the best of them is kept."""

from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np

from .draw import likeliest
from .generate import generate
from .samplers import BRANCHES, Adaptive, adaptive, top_p

FORK = -1  # not a token: it ends a row of generate where a fork is


@dataclass(frozen=True)
class Fork:
    """position: how many new tokens stand before it; texts: of its continuations; scores: their mean log-probabilities
    under the model (nats); chosen: the index of the best."""

    position: int
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    chosen: int


@dataclass(eq=False)
class Branched:
    """One row: the tokens kept (a stop token included), their text and log-probabilities, the forks on the way, and
    spent, the number of tokens generated for it, those thrown away included."""

    prompt_tokens: list[int]
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    spent: int = 0
    finished: bool = False

    def __repr__(self):
        return f"Branched({self.text!r}, {len(self.tokens)} of {self.spent} tokens kept, {len(self.forks)} forks)"


@dataclass(frozen=True)
class UntilFork:
    """A sampler that follows another one, and says FORK instead of a token where its thresholds' LEHV ("exploring")
    holds, or where the two likeliest tokens are within `tied` nats: an even fork has varentropy 0, and no quadrant."""

    sampler: object
    thresholds: Adaptive
    tied: float

    @property
    def needs(self):
        return tuple({*getattr(self.sampler, "needs", ()), *self.thresholds.needs})

    def bind(self, tokenizer):
        bound = self.sampler.bind(tokenizer) if hasattr(self.sampler, "bind") else self.sampler
        return replace(self, sampler=bound)

    def init(self, batch):
        return self.sampler.init(batch)

    def __call__(self, logits, metrics, state, keys):
        token, state, info = self.sampler(logits, metrics, state, keys)
        exploring = self.thresholds.branch(*self.thresholds.measure(metrics)) == BRANCHES.index("LEHV")
        best, _ = likeliest(logits, 2)
        fork = exploring | (best[:, 0] - best[:, 1] < self.tied)
        return jnp.where(fork, FORK, token), state, info


def branch(
    model,
    prompts,
    max_new_tokens: int = 64,
    sampler=top_p(0.9),  # noqa: B008 (a frozen dataclass)
    n: int = 4,
    m: int = 16,
    thresholds=adaptive("9d41be6"),  # noqa: B008
    tied: float = 0.1,
    seed: int = 0,
) -> list[Branched]:
    """Follow the sampler to a fork (see UntilFork), draw n continuations of up to m tokens there as rows of one batch,
    keep the one with the highest mean log-probability under the model, and go on: a Branched for each prompt.

    prompts: a list of texts or of token ids. The same seed gives the same rows; all randomness of a row comes from the
    seed, its place among the prompts, and how many forks it has passed. Raises ValueError as generate does."""
    rows = [Branched([int(t) for t in model.encode(p)[0]]) for p in prompts]
    walker = UntilFork(sampler, thresholds, tied)
    stops = model.tokenizer.stop_tokens
    left = lambda row: max_new_tokens - len(row.tokens)
    for turn in range(2 * max_new_tokens):
        active = [(i, row) for i, row in enumerate(rows) if not row.finished]
        if not active:
            break
        longest = max(left(row) for _, row in active)
        walked = _generate(model, active, longest, walker, 1, (seed, turn, 0), (*stops, FORK))
        forks = []
        for (i, row), (gen,) in zip(active, walked, strict=True):
            at_fork = len(gen.tokens) <= left(row) and gen.tokens[-1] == FORK
            _keep(row, gen, len(gen.tokens) - at_fork, left(row), stops)
            if at_fork and not row.finished:
                forks.append((i, row))
        if forks:
            length = min(m, max(left(row) for _, row in forks))
            drawn = _generate(model, forks, length, sampler, n, (seed, turn, 1), stops)
            for (_, row), gens in zip(forks, drawn, strict=True):
                room = left(row)
                scores = [float(gen.logprobs[:room].mean()) for gen in gens]
                best = int(np.argmax(scores))
                row.forks.append(Fork(len(row.tokens), tuple(gen.text for gen in gens), tuple(scores), best))
                row.spent += sum(min(len(gen.tokens), room) for i, gen in enumerate(gens) if i != best)
                _keep(row, gens[best], len(gens[best].tokens), room, stops)
    for row in rows:
        row.text = model.tokenizer.decode([t for t in row.tokens if t not in stops])
    return rows


def _generate(model, rows, max_new_tokens, sampler, n, seed, stop):
    """n Generations of each (index, row). The batch is padded to a power of two: few programs are compiled."""
    prompts = [row.prompt_tokens + row.tokens for _, row in rows for _ in range(n)]
    seeds = [int(np.random.SeedSequence([*seed, i, j]).generate_state(1)[0]) for i, _ in rows for j in range(n)]
    more = (1 << (len(prompts) - 1).bit_length()) - len(prompts)
    gens = generate(model, prompts + prompts[:1] * more, max_new_tokens, sampler, seeds + seeds[:1] * more, stop=stop)
    return [gens[i : i + n] for i in range(0, len(prompts), n)]


def _keep(row, gen, count, room, stops):
    """The first count tokens of gen, as far as there is room, at the end of row."""
    count = min(count, room)
    row.tokens += gen.tokens[:count].tolist()
    row.logprobs += gen.logprobs[:count].tolist()
    row.spent += count
    row.finished = count == room or (count > 0 and row.tokens[-1] in stops)
