"""Where the model stands at a fork: several continuations as rows of one batch, and the best of them is kept."""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..entropy.inspector import notebook_html
from ..entropy.trace import Trace, trace_text
from ..llama.model import KVCache
from ..llama.prefill import cache_slots, resized
from ..llama.sharding import gathered
from ..sampling.adaptive import BRANCHES, Adaptive, adaptive
from ..sampling.draw import likeliest
from ..sampling.plain import bound, top_p
from .generate import check, parts_of, row_seeds
from .step import read_prompts, step, taken

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
    """One row: the tokens kept (a stop token included), their text and log-probabilities, the forks on the way,
    spent, the number of tokens generated for it, those thrown away included, and a Trace of the tokens kept, where
    branch was asked for it."""

    prompt_tokens: list[int]
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    spent: int = 0
    finished: bool = False
    trace: Trace | None = None

    def __repr__(self):
        return f"Branched({self.text!r}, {len(self.tokens)} of {self.spent} tokens kept, {len(self.forks)} forks)"

    def _repr_html_(self):
        """The inspector with the forks in it; without a trace there is none, and a notebook shows the line above."""
        if self.trace is not None:
            note = f"{len(self.tokens)} of {self.spent} tokens kept, {len(self.forks)} forks"
            return notebook_html(self.trace, note=note, forks={fork.position: fork for fork in self.forks})


@jax.tree_util.register_dataclass
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
        return replace(self, sampler=bound(self.sampler, tokenizer))

    def init(self, batch):
        return self.sampler.init(batch)

    def __call__(self, logits, metrics, state, keys):
        token, new, info = self.sampler(logits, metrics, state, keys)
        exploring = self.thresholds.branch(*self.thresholds.measure(metrics)) == BRANCHES.index("LEHV")
        best, _ = likeliest(logits, 2)
        fork = exploring | (best[:, 0] - best[:, 1] < self.tied)
        kept = jax.tree.map(lambda x, y: jnp.where(fork.reshape(-1, *[1] * (x.ndim - 1)), x, y), state, new)
        return jnp.where(fork, FORK, token), kept, info


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
    batch: int = 32,
    trace: bool | str | tuple[str, ...] = False,
) -> list[Branched]:
    """Follow the sampler to a fork (see UntilFork), draw n continuations of up to m tokens there as rows of one batch,
    keep the one with the highest mean log-probability under the model, and go on: a Branched for each prompt.

    prompts: as for generate; up to `batch` of them are decoded together. A prompt is read once, whatever
    the number of forks. The same seed gives the same rows; all randomness of a row comes from the seed, its place
    among the prompts, and how many forks it has passed. trace: as for generate, of the tokens that were kept, from one
    more pass over them. Raises ValueError as generate does, and for a model without a tokenizer."""
    model.require_tokenizer()  # a fork is a choice between texts
    tokens = model.prompt_rows(prompts)
    check(tokens, max_new_tokens, 2**31)
    (seed,), parts = row_seeds(seed, 1), parts_of(trace)
    rows = [Branched(t.tolist()) for t in tokens]
    walker = UntilFork(sampler, thresholds, tied).bind(model.tokenizer)
    for start in range(0, len(rows), batch):
        group = list(enumerate(rows))[start : start + batch]
        _follow(model, group, min(batch, len(rows)), max_new_tokens, walker, n, m, seed)
    for row in rows if parts is not None else ():
        whole = trace_text(model, row.prompt_tokens + row.tokens, "lens" in parts, "attention" in parts)
        row.trace = replace(whole[len(row.prompt_tokens) - 1 :], thresholds=thresholds.thresholds)
    return rows


def _follow(model, group, size, max_new_tokens, walker, n, m, seed):
    """Branch a group of (index, row), row i in lane i of `size`; up to size // n forks are followed together."""
    stops, left = model.tokenizer.stop_tokens, lambda row: max_new_tokens - len(row.tokens)
    lanes = Lanes.of(model, walker, [row.prompt_tokens for _, row in group], size, max_new_tokens)
    width = max(1, size // n)
    for turn in range(2 * max_new_tokens):
        room = [0 if row.finished else left(row) for _, row in group]
        if not any(room):
            break
        seeds = [(seed, turn, 0, i, 0) for i, _ in group]
        walked = lanes.decode(walker, room, seeds, (*stops, FORK))
        forks = []
        for lane, ((_, row), (tokens, logprobs)) in enumerate(zip(group, walked, strict=False)):
            forks += [lane] if tokens[-1:] == [FORK] else []
            count = len(tokens) - (tokens[-1:] == [FORK])
            _keep(row, tokens[:count], logprobs[:count], max_new_tokens, stops)
        for some in (forks[i : i + width] for i in range(0, len(forks), width)):
            some = some + some[:1] * (width - len(some))
            each = [group[lane] for lane in dict.fromkeys(some)]
            room = [min(m, left(row)) for _, row in each for _ in range(n)]
            seeds = [(seed, turn, 1, i, j) for i, _ in each for j in range(n)]
            tried = lanes.take(np.repeat(some, n))
            drawn = tried.decode(walker.sampler, room, seeds, stops)
            best = [_choose(model, row, drawn[f * n : (f + 1) * n], max_new_tokens) for f, (_, row) in enumerate(each)]
            best += best[:1] * (width - len(best))
            lanes.put(some, tried, [f * n + b if f < len(each) else b for f, b in enumerate(best)])
    for _, row in group:
        row.text = model.tokenizer.decode([t for t in row.tokens if t not in stops])


def _choose(model, row, drawn, max_new_tokens):
    """Keep the best of the continuations, a pair (tokens, logprobs) each, and say which it was."""
    stops, scores = model.tokenizer.stop_tokens, [float(np.mean(logprobs)) for _, logprobs in drawn]
    best = int(np.argmax(scores))
    texts = tuple(model.tokenizer.decode([t for t in tokens if t not in stops]) for tokens, _ in drawn)
    row.forks.append(Fork(len(row.tokens), texts, tuple(scores), best))
    row.spent += sum(len(tokens) for i, (tokens, _) in enumerate(drawn) if i != best)
    _keep(row, *drawn[best], max_new_tokens, stops)
    return best


def _keep(row, tokens, logprobs, max_new_tokens, stops):
    row.tokens += tokens
    row.logprobs += logprobs
    row.spent += len(tokens)
    row.finished = len(row.tokens) == max_new_tokens or row.tokens[-1:] != [] and row.tokens[-1] in stops


@dataclass
class Lanes:
    """Sequences that are decoded together: a cache and a sampler's state with a row to each, and of each its last token
    and the position of that. The next step writes the last token into the cache."""

    model: object
    cache: KVCache
    state: object
    last: np.ndarray
    position: np.ndarray

    @classmethod
    def of(cls, model, sampler, prompts, size, new_tokens):
        """Prompts in the first of `size` lanes, the others idle, with room for new_tokens in each."""
        rows = [*prompts, *[prompts[0][:1]] * (size - len(prompts))]
        position = np.array([len(row) - 1 for row in rows], np.int32)
        _, cache = read_prompts(model, rows)
        cache = resized(cache, cache_slots(position.max() + 1 + new_tokens))
        return cls(model, cache, sampler.init(size), np.array([row[-1] for row in rows], np.int32), position)

    def decode(self, sampler, room, seeds, ends):
        """Up to room[i] tokens of lane i, fewer where one of ends comes: a pair (tokens, logprobs) to each lane.

        Lanes beyond room are idle: they compute the same step again. seeds: a tuple of numbers to each lane."""
        idle = len(self.last) - len(room)
        room = np.array([*room, *[0] * idle])
        seeds = np.array([np.random.SeedSequence(s).generate_state(1)[0] for s in seeds] + [0] * idle, np.uint32)
        found = [([], []) for _ in room]
        going = room > 0
        for count in range(room.max()):
            weights, last = self.model.decode_weights, self.last[:, None]
            out, self.cache, self.state, *_ = step(
                weights, self.model.config, sampler, last, self.position, self.cache, self.state, seeds, count
            )
            token, logprob = jax.device_get(gathered((out["token"], out["logprob"])))
            for i in np.flatnonzero(going):
                found[i][0].append(int(token[i]))
                found[i][1].append(float(logprob[i]))
            drawn = going & (token >= 0)
            self.last = np.where(drawn, token, self.last)
            self.position = self.position + drawn.astype(np.int32)
            going &= (count + 1 < room) & ~np.isin(token, ends)
            if not going.any():
                break
        return found

    def take(self, lanes):
        """Copies of some lanes."""
        return Lanes(self.model, *taken((self.cache, self.state), lanes), self.last[lanes], self.position[lanes])

    def put(self, lanes, other, of_other):
        """Other's lanes of_other in the place of lanes."""
        self.cache, self.state = _put(
            (self.cache, self.state), np.array(lanes), (other.cache, other.state), np.array(of_other)
        )
        self.last[lanes], self.position[lanes] = other.last[of_other], other.position[of_other]


@partial(jax.jit, donate_argnums=0)
def _put(tree, rows, other, of_other):
    return jax.tree.map(lambda x, y: x.at[rows].set(y[of_other]), tree, other)
