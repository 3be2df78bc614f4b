"""Samplers on the same prompts and seeds."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ..entropy.metrics import entropy_varentropy
from ..generation.generate import generate
from ..sampling.plain import bound
from ..timing import median_seconds

SYSTEM = "Answer briefly."


@dataclass(frozen=True, eq=False)
class Run:
    """One sampler on n tasks with k samples each. texts [n][k], tokens [n][k] (arrays of ids), and arrays [n,k]:
    passed, length (tokens), surprisal (mean -log p of a sample's tokens under the model, nats). info: what the Panel
    reported at each token, flat arrays over all samples' tokens."""

    name: str
    texts: list
    tokens: list
    passed: np.ndarray
    length: np.ndarray
    surprisal: np.ndarray
    info: dict = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return float(self.passed.mean())

    @property
    def mean_surprisal(self) -> float:
        """Of all tokens, nats: an estimate of the cross-entropy between what was drawn and the model."""
        return float((self.surprisal * self.length).sum() / self.length.sum())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Panel:
    """Several samplers in one program: row i of a batch of a multiple of n rows follows samplers[i % n].

    Reports the entropy and varentropy (nats, nats^2) that stood before each token, and what each sampler reports, -1
    where it reports no such thing."""

    samplers: tuple

    @property
    def needs(self):
        return tuple({name for s in self.samplers for name in getattr(s, "needs", ())})

    def bind(self, tokenizer):
        return Panel(tuple(bound(s, tokenizer) for s in self.samplers))

    def init(self, batch):
        return tuple(s.init(batch // len(self.samplers)) for s in self.samplers)

    def __call__(self, logits, metrics, state, keys):
        of = lambda x, i: x[i :: len(self.samplers)]
        drawn = [
            s(of(logits, i), {name: of(x, i) for name, x in metrics.items()}, state[i], of(keys, i))
            for i, s in enumerate(self.samplers)
        ]
        tokens, states, infos = zip(*drawn, strict=True)
        in_turn = lambda xs: jnp.stack(xs, 1).reshape(-1)
        blank, reported = jnp.full_like(tokens[0], -1), {name for info in infos for name in info}
        info = {name: in_turn([info.get(name, blank) for info in infos]) for name in sorted(reported)}
        info |= {name: metrics[name] for name in ("entropy", "varentropy")}
        return in_turn(tokens), states, info


def evaluate(model, tasks, samplers, samples=2, max_new_tokens=20, seed=0, system=SYSTEM, batch=64) -> dict:
    """{name: Run} for a dict of samplers, all in one compiled program. Sample j of task i has the same seed under each.

    Prompts are chats with the system message (None or "" for the model's default). Up to about `batch` rows are decoded
    together; that changes no result."""
    prompts, n = chat_prompts(model, tasks, system), len(samplers)
    pairs = [(i, j) for i in np.argsort([len(p) for p in prompts], kind="stable") for j in range(samples)]
    found, width = {}, max(1, batch // n)
    width = -(-len(pairs) // -(-len(pairs) // width))  # as many batches, of equal size,
    width += -width % samples if width > samples else 0  # and a task's samples together: its prompt is read once
    for start in range(0, len(pairs), width):
        some = pairs[start : start + width]
        some = some + some[:1] * (width - len(some))  # the last batch has the others' shape: nothing new to compile
        rows = [(i, j) for i, j in some for _ in range(n)]
        seeds = [int(np.random.SeedSequence([seed, i, j]).generate_state(1)[0]) for i, j in rows]
        panel = Panel(tuple(samplers.values()))
        gens = generate(model, [prompts[i] for i, _ in rows], max_new_tokens, panel, seeds, progress=False)
        found |= {pair: gens[i * n : (i + 1) * n] for i, pair in enumerate(some)}
    of = lambda s: [[found[i, j][s] for j in range(samples)] for i in range(len(tasks))]
    return {name: make_run(name, tasks, of(s)) for s, name in enumerate(samplers)}


def make_run(name, tasks, gens) -> Run:
    """A Run from k results of each task: Generations, or the Branched of ``branch``."""
    both = list(zip(tasks, gens, strict=True))
    of = lambda f: np.array([[f(task, g) for g in row] for task, row in both])
    return Run(
        name,
        [[g.text for g in row] for row in gens],
        [[np.asarray(g.tokens) for g in row] for row in gens],
        of(lambda task, g: task.passes(g.text)),
        of(lambda task, g: len(g.tokens)),
        of(lambda task, g: -np.mean(g.logprobs)),
        {name: np.concatenate([g.info[name] for row in gens for g in row]) for name in getattr(gens[0][0], "info", {})},
    )


def chat_prompts(model, tasks, system=SYSTEM) -> list:
    """The tasks as token ids of a chat with that system message."""
    first = [] if not system else [{"role": "system", "content": system}]
    return [model.tokenizer.encode_dialog_prompt([*first, {"role": "user", "content": t.prompt}]) for t in tasks]


def best_of(run, n) -> Run:
    """Of each task's first n samples (a number, or one to each task) the one with the highest mean log-probability: a
    Run of one sample to a task."""
    among = np.arange(run.surprisal.shape[1]) < np.broadcast_to(n, len(run.surprisal))[:, None]
    best = np.argmin(np.where(among, run.surprisal, np.inf), 1)[:, None]
    return _picked(f"best of {np.mean(n):.3g}, {run.name}", run, best)


def _picked(name, run, index):
    """Of each task the sample at index [n,1]."""
    pick = lambda x: np.take_along_axis(x, index, 1)
    nested = lambda rows: [[row[i]] for row, i in zip(rows, index[:, 0], strict=True)]
    return Run(name, nested(run.texts), nested(run.tokens), pick(run.passed), pick(run.length), pick(run.surprisal))


def within_budget(run, spent) -> np.ndarray:
    """How many of each task's samples cost about as many tokens as spent [n]: at least one and at most all,
    and so many that the tokens of all tasks up to each one come nearest to what was spent on them."""
    counts, used = [], 0
    for cost, budget in zip(np.cumsum(run.length, 1), np.cumsum(spent), strict=True):
        counts.append(int(np.argmin(np.abs(used + cost - budget))) + 1)
        used += cost[counts[-1] - 1]
    return np.array(counts)


def majority(run, tasks) -> Run:
    """Of each task's samples the likeliest of those whose final answer (Task.final) is the most frequent, of equally
    frequent answers again the likeliest: a Run of one sample to a task."""
    best = []
    for task, texts, surprisal in zip(tasks, run.texts, run.surprisal, strict=True):
        finals = [task.final(text) for text in texts]
        best.append(max(range(len(texts)), key=lambda j: (finals.count(finals[j]), -surprisal[j])))
    return _picked(f"majority, {run.name}", run, np.array(best)[:, None])


def step_seconds(sampler, vocab_size: int, batch: int = 1, repeats: int = 20) -> float:
    """Median seconds of one step of a compiled sampler on normal logits [batch, vocab_size], metrics given."""
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((batch, vocab_size)) * 4, jnp.float32)
    H, V = entropy_varentropy(logits)
    step = jax.jit(lambda logits, state, keys: sampler(logits, {"entropy": H, "varentropy": V}, state, keys))
    state, keys = sampler.init(batch), jax.random.split(jax.random.key(0), batch)
    return median_seconds(lambda: step(logits, state, keys), repeats)
