"""Short tasks whose answers can be checked by a program: made here, or read from JSON lines, GSM8K's format too."""

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Egypt Cairo, Greece Athens, China
Beijing, Russia Moscow, Portugal Lisbon, Austria Vienna, Poland Warsaw, Norway Oslo, Sweden Stockholm, Finland
Helsinki, Denmark Copenhagen, Ireland Dublin, Hungary Budapest, Belgium Brussels, Turkey Ankara, Iran Tehran, Iraq
Baghdad, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Australia Canberra, Kenya Nairobi, Thailand Bangkok,
Vietnam Hanoi, India Delhi, Syria Damascus, Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade,
Croatia Zagreb, Jordan Amman, Morocco Rabat, Colombia Bogota"""
OPPOSITES = """hot cold, big small, up down, day night, happy sad, fast slow, open closed, old young, rich poor,
hard soft, light dark, full empty, high low, wet dry, strong weak, early late, left right, good bad, true false,
clean dirty, near far, loud quiet, thick thin, deep shallow, first last, war peace, love hate, north south, summer
winter, buy sell"""
PLURALS = """mouse mice, child children, foot feet, tooth teeth, man men, woman women, goose geese, person people,
box boxes, city cities, leaf leaves, wolf wolves, knife knives, life lives, baby babies, bus buses, church churches,
dish dishes, hero heroes, potato potatoes, story stories, berry berries, half halves, shelf shelves, ox oxen, cactus
cacti, dog dogs, apple apples, key keys, window windows"""
PASTS = """go went, eat ate, see saw, run ran, take took, come came, give gave, write wrote, drink drank, sing sang,
swim swam, buy bought, think thought, teach taught, bring brought, fall fell, fly flew, know knew, begin began,
break broke, speak spoke, drive drove, sleep slept, keep kept, leave left, make made, sit sat, stand stood, win won,
forget forgot"""
KINDS = """dog animal, rose flower, oak tree, red color, apple fruit, carrot vegetable, hammer tool, piano
instrument, salmon fish, sparrow bird, Monday day, March month, Mars planet, Spanish language, tennis sport, gold
metal, ant insect, chair furniture, milk drink, shirt clothing, eagle bird, tulip flower, violin instrument, banana
fruit, iron metal, blue color, French language, shark fish, soccer sport, cat animal"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()


@dataclass(frozen=True)
class Task:
    """prompt; answer; check: "word" (the answer occurs as a word), "number" (it is the last number) or "exact"; kind: a
    label by which results can be grouped."""

    prompt: str
    answer: str
    check: str = "word"
    kind: str = ""

    def __post_init__(self):
        if self.check not in ("word", "number", "exact"):
            raise ValueError(f'check {self.check!r} is unknown: there are "word", "number" and "exact"')
        if self.check == "number" and _number(self.answer) is None:
            raise ValueError(f"the answer {self.answer!r} to {self.prompt!r} holds no number")

    def passes(self, text: str) -> bool:
        """Whether text answers the task."""
        if self.check == "number":
            return _number(text) == _number(self.answer)
        if self.check == "exact":
            return text.strip() == self.answer.strip()
        return re.search(rf"(?<!\w){re.escape(self.answer)}(?!\w)", text, re.IGNORECASE) is not None


def _number(text):
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _pairs(text):
    return [pair.split() for pair in text.split(",")]


def _words(kind, question, text):
    return [Task(question.format(a), b, "word", kind) for a, b in _pairs(text)]


def _next(kind, names):
    return [
        Task(f"Which {kind} comes after {a}?", b, "word", kind)
        for a, b in zip(names, names[1:] + names[:1], strict=True)
    ]


def _sums():
    small = [(a, b) for a in range(2, 21) for b in range(2, 21)]
    sums = [
        *(Task(f"What is {a} + {b}?", str(a + b), "number", "addition") for a, b in small),
        *(Task(f"What is {a} - {b}?", str(a - b), "number", "subtraction") for a, b in small if a > b),
        *(Task(f"What is {a} times {b}?", str(a * b), "number", "product") for a, b in small if max(a, b) < 10),
    ]
    # a sentence that only repeats the question must not pass
    return [task for task in sums if task.answer not in NUMBER.findall(task.prompt)]


def make_tasks(n: int = 300, seed: int = 0) -> list[Task]:
    """n different tasks, drawn in turn from ten kinds until a kind runs out: facts and grammar of school, sums of
    small numbers. A model of 135 million parameters does about two in five."""
    everything = [
        *_words("capital", "What is the capital of {}?", CAPITALS),
        *_words("opposite", "What is the opposite of {}?", OPPOSITES),
        *_words("plural", "What is the plural of {}?", PLURALS),
        *_words("past", "What is the past tense of {}?", PASTS),
        *_words("category", "What kind of thing is {}?", KINDS),
        *_next("day", DAYS),
        *_next("month", MONTHS),
        *_sums(),
    ]
    if not 1 <= n <= len(everything):
        raise ValueError(f"there are {len(everything)} tasks, asked for {n}")
    shuffle = random.Random(seed)
    shuffle.shuffle(everything)
    by_kind = {}
    for task in everything:
        by_kind.setdefault(task.kind, []).append(task)
    chosen = []
    while len(chosen) < n:
        for tasks in by_kind.values():
            chosen += [tasks.pop()] if tasks else []
    return chosen[:n]


def save_tasks(path, tasks) -> None:
    """One JSON object to a line, as load_tasks reads it."""
    Path(path).write_text("".join(json.dumps(asdict(task)) + "\n" for task in tasks))


def load_tasks(path) -> list[Task]:
    """Tasks from JSON lines: {"prompt", "answer", optional "check" and "kind"}, or GSM8K's {"question", "answer"} whose
    answer ends in "#### 42". Raises ValueError with the line's number for anything else."""
    tasks = []
    for i, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if "question" in fields:
                answer = fields["answer"].split("####")
                if len(answer) != 2:
                    raise ValueError('a GSM8K answer ends in "#### " and a number')
                fields = {"prompt": fields["question"], "answer": answer[1].strip(), "check": "number", "kind": "gsm8k"}
            tasks.append(Task(**fields))
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise ValueError(f"{path}, line {i}: {e}") from e
    return tasks
