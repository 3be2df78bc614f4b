"""Are high-entropy tokens where answers are decided? At each token of a greedy answer the second choice instead,
finished greedily: where the verdict flips, the answer was decided."""

from dataclasses import dataclass

import jax
import numpy as np

from ..generation.branching import Lanes
from ..generation.generate import generate
from ..sampling.draw import likeliest
from ..sampling.plain import Greedy, greedy
from .runs import SYSTEM, chat_prompts
from .statistics import RESAMPLES, resampled, spread

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


def pairs(score, events, task, group) -> np.ndarray:
    """[2,n,n]: of the pairs of an event of task i and a non-event of task j that are of one group, in how many the
    event's score is larger (ties count half), and how many there are. Arrays over tokens; task: 0 to n - 1."""
    score, events, n = np.asarray(score), np.asarray(events, bool), task.max() + 1
    found = np.zeros((2, n * n))
    for g in np.unique(group):
        event, other = (np.flatnonzero((group == g) & which) for which in (events, ~events))
        difference = score[event][:, None] - score[other]
        cell = (task[event][:, None] * n + task[other]).ravel()
        found += [np.bincount(cell, x, n * n) for x in ((np.sign(difference).ravel() + 1) / 2, np.ones(cell.size))]
    return found.reshape(2, n, n)


def among(found, counts) -> np.ndarray:
    """AUROCs [1 + n] over the pairs of all tasks, each task as often as it was drawn."""
    won, every = (((counts @ x) * counts).sum(1) for x in found)
    return won / np.where(every, every, np.nan)


def inside(found, counts) -> np.ndarray:
    """The same over pairs of one task."""
    won, every = (counts @ np.diag(x) for x in found)
    return won / np.where(every, every, np.nan)


def joined(rows):
    """The tokens of all answers: {score: array}, flips, the number of the answer, and the place in it."""
    each = [scores(row) for row in rows]
    score = {name: np.concatenate([s[name] for s in each]) for name in each[0]}
    length = [len(row["flips"]) for row in rows]
    flips = np.concatenate([row["flips"] for row in rows]).astype(bool)
    return score, flips, np.repeat(np.arange(len(rows)), length), np.concatenate([np.arange(k) for k in length])


def before_right_word(rows, tasks) -> list:
    """The same records without the forks that cannot flip: where a word must occur, a right answer up to the token that
    completes the word. Whatever is written after it, the answer passes."""
    return [_until_it_passes(row, task) for row, task in zip(rows, tasks, strict=True)]


def _until_it_passes(row, task):
    pieces, n = row["pieces"], len(row["flips"])
    if task.check != "word" or not row["passed"]:
        return row
    first = next((k for k in range(1, n) if task.passes("".join(pieces[:k]))), n)
    return {name: x[:first] if isinstance(x, list) else x for name, x in row.items()}


def token_aurocs(rows, n=RESAMPLES) -> dict:
    """How well each score says which tokens flip the verdict: {name: {view: (AUROC, 2.5 %, 97.5 %)}}, tasks resampled.

    The views: "pooled" over the tokens of all answers; "within" pairs of tokens of one answer; "same place" pairs of
    tokens that stand equally far from the beginnings of their answers; "pooled over entropy" and so on the same less
    that of the entropy, on the same resampled tasks."""
    (score, flips, task, place), counts, table = joined(rows), resampled(len(rows), n), {}
    for name, values in score.items():
        found = pairs(values, flips, task, np.zeros_like(task))
        views = {"pooled": among(found, counts), "within": inside(found, counts)}
        views["same place"] = among(pairs(values, flips, task, place), counts)
        entropy = table.get("entropy", views)
        table[name] = views | {f"{view} over entropy": x - entropy[view] for view, x in views.items()}
    return {name: {view: spread(values) for view, values in views.items()} for name, views in table.items()}


def second_probability(row) -> np.ndarray:
    """Of each token's second choice [T], the margin being the difference of the two log-probabilities: how often
    drawing at temperature 1 that has followed the answer so far takes this fork."""
    return np.array(row["top_probability"]) * np.exp(-np.array(row["margin"]))


def found_at(rows, name, share, hits=None, n=0) -> np.ndarray:
    """The share of all flips that are found by forking this share of all tokens (or these: an array), those with the
    largest scores; where a score is tied at the edge, its tokens count in part. name "oracle": the flips first.
    hits: what is counted in place of the flips, an array over the tokens of all answers. n: that many resamplings of
    the tasks follow the value itself, [1 + n,...]."""
    score, flips, task, _ = joined(rows)
    hits = np.asarray(flips if hits is None else hits, float)
    first = hits if name == "oracle" else score[name]
    order = np.argsort(-first, kind="stable")
    edges = np.append(np.flatnonzero(np.diff(first[order])), len(order) - 1)  # the last token of each value
    counts = resampled(len(rows), n)[:, task[order]]
    from_none = lambda x: np.pad(np.cumsum(x, 1)[:, edges], ((0, 0), (1, 0)))
    sums = zip(from_none(counts), from_none(counts * hits[order]), strict=True)
    found = np.array([np.interp(share * spent[-1], spent, met) / met[-1] for spent, met in sums])
    return found if n else found[0]


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


def answer_aurocs(rows, kinds, n=RESAMPLES) -> dict:
    """How well each of answer_scores says which answers fail: {name: {view: (AUROC, 2.5 %, 97.5 %)}}, tasks resampled.
    The views: "pooled"; "within" pairs of answers to the same kind of task; "over length" the latter less that of the
    answer's length, on the same resampled tasks."""
    wrong, groups = np.array([not row["passed"] for row in rows]), np.unique(kinds, return_inverse=True)[1]
    task, counts, table = np.arange(len(rows)), resampled(len(rows), n), {}
    for name, score in answer_scores(rows).items():
        views = {"pooled": np.zeros_like(task), "within": groups}
        table[name] = {view: among(pairs(score, wrong, task, group), counts) for view, group in views.items()}
    for views in table.values():
        views["over length"] = views["within"] - table["length"]["within"]
    return {name: {view: spread(values) for view, values in views.items()} for name, views in table.items()}
