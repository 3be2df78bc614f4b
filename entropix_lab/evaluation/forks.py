"""Are high-entropy tokens where answers are decided? At each token of a greedy answer the second choice instead,
finished greedily: where the verdict flips, the answer was decided."""

from dataclasses import dataclass

import jax
import numpy as np

from ..generation.branching import Lanes
from ..generation.generate import generate
from ..sampling.draw import likeliest
from ..sampling.plain import Greedy, greedy
from .calibration import auroc
from .runs import SYSTEM, chat_prompts
from .statistics import by_task

# What may say beforehand that a token decides; all are made so that larger means more hesitation.
PREDICTORS = ("entropy", "varentropy", "margin", "top-1")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched(Greedy):
    """The greedy sampler, which reports entropy (nats), varentropy (nats^2) and the second choice."""

    def __call__(self, logits, metrics, state, keys):
        token, state, _ = super().__call__(logits, metrics, state, keys)
        _, ids = likeliest(logits, 2)
        report = {name: metrics[name] for name in ("entropy", "varentropy")}
        return token, state, report | {"second": ids[:, 1]}


@dataclass(frozen=True, eq=False)
class Forked:
    """A greedy answer and its forks. passed: of the answer; arrays [T] over its tokens, the stop token included:
    entropy (nats), varentropy (nats^2), margin (between the two largest logits), top_probability; second: the tokens
    taken instead; verdicts: whether the answers that follow from them pass; texts: those answers."""

    text: str
    passed: bool
    tokens: np.ndarray
    entropy: np.ndarray
    varentropy: np.ndarray
    margin: np.ndarray
    top_probability: np.ndarray
    second: np.ndarray
    verdicts: np.ndarray
    texts: list

    @property
    def flips(self) -> np.ndarray:
        return self.verdicts != self.passed


def fork_every_token(model, tasks, max_new_tokens=24, system=SYSTEM, group=24, rows=96) -> list[Forked]:
    """A Forked to each task. `group` tasks are read together, and `rows` of their forks decoded together, through the
    cache: what stands before a fork is read once. Raises ValueError for a model without a tokenizer."""
    model.require_tokenizer()
    prompts, found = chat_prompts(model, tasks, system), {}
    order = np.argsort([len(p) for p in prompts], kind="stable").tolist()
    for some in (order[i : i + group] for i in range(0, len(order), group)):
        read = [prompts[i] for i in some + some[:1] * (group - len(some))]  # one shape: nothing new to compile
        answers = generate(model, read, max_new_tokens, Watched(), progress=False)[: len(some)]
        forks = _fork(model, read, answers, max_new_tokens, rows)
        for n, (i, g) in enumerate(zip(some, answers, strict=True)):
            verdicts = np.array([tasks[i].passes(text) for text in forks[n]])
            seen = (g.info["entropy"], g.info["varentropy"], g.margins, np.exp(g.logprobs), g.info["second"])
            found[i] = Forked(g.text, tasks[i].passes(g.text), g.tokens, *seen, verdicts, forks[n])
    return [found[i] for i in range(len(tasks))]


def _fork(model, prompts, answers, max_new_tokens, rows):
    """The texts of all forks: a list to each answer."""
    decode, stops = model.tokenizer.decode, model.tokenizer.stop_tokens
    whole = [list(p) + a.tokens.tolist() for p, a in zip(prompts, answers, strict=False)]
    lanes = Lanes.of(model, greedy(), whole + prompts[len(answers) :], len(prompts), max_new_tokens)
    places = [(n, t) for n, a in enumerate(answers) for t in range(len(a.tokens))]
    places.sort(key=lambda place: place[1])  # those that have equally far to go together
    texts = [[None] * len(a.tokens) for a in answers]
    for some in (places[i : i + rows] for i in range(0, len(places), rows)):
        lane, at = np.array(some + some[:1] * (rows - len(some))).T
        tried = lanes.take(lane)
        tried.last = np.array([answers[n].info["second"][t] for n, t in zip(lane, at, strict=True)], np.int32)
        tried.position = np.array([len(prompts[n]) + t for n, t in zip(lane, at, strict=True)], np.int32)
        room = [
            0 if token in stops else max_new_tokens - t - 1 for (_, t), token in zip(some, tried.last, strict=False)
        ]
        seconds = tried.last.tolist()  # decoding moves tried.last on
        drawn = tried.decode(greedy(), room, [(0,)] * len(some), stops) if any(room) else [([], [])] * len(some)
        for (n, t), second, (tokens, _) in zip(some, seconds, drawn, strict=False):
            path = [*answers[n].tokens[:t].tolist(), second, *tokens]
            texts[n][t] = decode([token for token in path if token not in stops])
    return texts


# What follows reads records: dicts {"passed", "flips" [T], "entropy" [T], "varentropy", "margin", "top_probability"},
# as the benchmark keeps them.


def record(forked) -> dict:
    """A Forked as such a record."""
    of = lambda name: [float(f"{x:.4g}") for x in getattr(forked, name)]
    seen = {name: of(name) for name in ("entropy", "varentropy", "margin", "top_probability")}
    return {"text": forked.text, "passed": bool(forked.passed), "flips": forked.flips.astype(int).tolist(), **seen}


def scores(row) -> dict:
    """What may say that a token decides, arrays [T] that are larger where it should: the PREDICTORS, and for comparison
    how early the token stands."""
    H, V, margin, top = (np.array(row[name]) for name in ("entropy", "varentropy", "margin", "top_probability"))
    return {
        "entropy": H,
        "varentropy": V,
        "margin": -margin,
        "top-1": -top,
        "position": -np.arange(len(H), dtype=float),
    }


def auroc_within(scores, events, groups) -> float:
    """The probability that an event has a larger score than a non-event of its own group (ties count half)."""
    won, pairs = np.sum([_won(scores[groups == g], events[groups == g]) for g in np.unique(groups)], 0)
    return float(won / pairs) if pairs else float("nan")


def _won(scores, events):
    """Pairs (event, non-event) in which the event's score is larger, and pairs."""
    value = auroc(scores, events)
    pairs = np.sum(events) * np.sum(np.logical_not(events))
    return (value * pairs, pairs) if pairs else (0.0, 0)


def token_aurocs(rows, n=1000) -> dict:
    """How well each score says which tokens flip the verdict: {name: {view: (AUROC, 2.5 %, 97.5 %)}}, tasks resampled.

    The views: "pooled" over the tokens of all answers; "within" pairs of tokens of one answer; "same place" pairs of
    tokens that stand equally far from the beginnings of their answers; "over entropy" the pooled AUROC less that of the
    entropy, on the same resampled tasks."""
    names = list(scores(rows[0]))
    tasks = [(*scores(row).values(), np.array(row["flips"], bool)) for row in rows]
    pooled = lambda *x: np.array([auroc(s, x[-1]) for s in x[:-1]])
    drawn = by_task(lambda *x: np.concatenate([p := pooled(*x), p - p[0]]), tasks, n)
    counted = [(np.array([[_won(s, task[-1]) for s in task[:-1]]]),) for task in tasks]  # [1,scores,2]
    within = by_task(lambda x: x.sum(0)[:, 0] / x.sum(0)[:, 1], counted, n)
    placed = [(*task, np.arange(len(task[-1]))) for task in tasks]
    same = by_task(lambda *x: np.array([auroc_within(s, x[-2], x[-1]) for s in x[:-2]]), placed, n // 4)
    of = lambda x, i: tuple(float(v) for v in x[:, i])
    return {
        name: {
            "pooled": of(drawn, i),
            "within": of(within, i),
            "same place": of(same, i),
            "over entropy": of(drawn, i + len(names)),
        }
        for i, name in enumerate(names)
    }


def second_probability(row) -> np.ndarray:
    """Of each token's second choice [T]: the margin is the difference of their log-probabilities."""
    return np.array(row["top_probability"]) * np.exp(-np.array(row["margin"]))


def found_at(rows, name, share, weighted=False) -> float:
    """The share of all flips that are found by forking this share of all tokens, those with the largest scores; where a
    score is tied at the edge, its tokens count in part. name "oracle": the flips first. weighted: a flip counts by the
    probability of its second choice, which is how often drawing at temperature 1 would meet it."""
    flips = np.concatenate([np.array(row["flips"]) * (second_probability(row) if weighted else 1) for row in rows])
    score = flips if name == "oracle" else np.concatenate([scores(row)[name] for row in rows])
    values, index = np.unique(-score, return_inverse=True)
    count, hits = np.bincount(index), np.bincount(index, flips)  # of each value, the largest first
    return float(np.interp(share * len(flips), [0, *np.cumsum(count)], [0, *np.cumsum(hits)]) / flips.sum())


def answer_scores(rows) -> dict:
    """Of each answer [n]: the mean over its tokens of what may say that it is wrong, its most hesitant token's, and its
    length; all larger where it should be wrong."""
    found = {}
    for name in PREDICTORS:
        found[f"mean {name}"] = np.array([scores(row)[name].mean() for row in rows])
        extreme = "smallest" if name in ("margin", "top-1") else "largest"
        found[f"{extreme} {name}"] = np.array([scores(row)[name].max() for row in rows])
    found["mean surprisal"] = np.array([-np.log(row["top_probability"]).mean() for row in rows])
    return found | {"length": np.array([len(row["entropy"]) for row in rows], float)}


def answer_aurocs(rows, kinds, n=500) -> dict:
    """How well each of answer_scores says which answers fail: {name: {"pooled" | "within": (AUROC, 2.5 %, 97.5 %)}},
    tasks resampled; within: pairs of answers to the same kind of task."""
    wrong, groups = np.array([not row["passed"] for row in rows]), np.unique(kinds, return_inverse=True)[1]
    found = {}
    for name, score in answer_scores(rows).items():
        tasks = [(score[i : i + 1], wrong[i : i + 1], groups[i : i + 1]) for i in range(len(rows))]
        both = by_task(lambda s, e, g: np.array([auroc(s, e), auroc_within(s, e, g)]), tasks, n)
        found[name] = {"pooled": tuple(both[:, 0].tolist()), "within": tuple(both[:, 1].tolist())}
    return found
