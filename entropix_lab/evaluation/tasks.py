"""Short tasks whose answers can be checked by a program: made here, or read from JSON lines, GSM8K's format too."""

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

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
PASTS = """go went, eat ate, see saw, run ran, take took, come came, give gave, write wrote, drink drank, sing sang,
swim swam, buy bought, think thought, teach taught, bring brought, fall fell, fly flew, know knew, begin began,
break broke, speak spoke, drive drove, sleep slept, keep kept, leave left, make made, sit sat, stand stood, win won,
forget forgot"""
NOUNS = """decide decision, arrive arrival, grow growth, choose choice, believe belief, move movement, sell sale,
explain explanation, invent invention, discover discovery, agree agreement, refuse refusal, fail failure, succeed
success, marry marriage, enjoy enjoyment, describe description, educate education, protect protection, depart departure,
improve improvement, destroy destruction, compare comparison, permit permission, know knowledge, behave behavior, appear
appearance, discuss discussion, treat treatment, collect collection"""
CURRENCIES = """Japan yen, India rupee, Mexico peso, China yuan, Russia ruble, Brazil real, Switzerland franc, Sweden
krona, Poland zloty, Germany euro, Turkey lira, Thailand baht, Kenya shilling, France euro, Israel shekel, Canada
dollar, Australia dollar, Egypt pound, Spain euro, Chile peso, Italy euro, Denmark krone, Norway krone, Vietnam dong,
Hungary forint, Iran rial, Iraq dinar, Pakistan rupee, Ukraine hryvnia, Bangladesh taka"""
LANGUAGES = """Brazil Portuguese, Mexico Spanish, Austria German, Egypt Arabic, Japan Japanese, Iran Persian, Argentina
Spanish, Israel Hebrew, Greece Greek, Poland Polish, Cuba Spanish, China Chinese, Russia Russian, Italy Italian, Sweden
Swedish, Turkey Turkish, Hungary Hungarian, Finland Finnish, Denmark Danish, Thailand Thai, Vietnam Vietnamese,
Netherlands Dutch, Norway Norwegian, Colombia Spanish, Angola Portuguese, Peru Spanish, Morocco Arabic, Ukraine
Ukrainian, Romania Romanian, Bulgaria Bulgarian"""
CONTINENTS = """Kenya Africa, Peru America, Japan Asia, Spain Europe, Chad Africa, Nepal Asia, Chile America, Norway
Europe, Ghana Africa, Laos Asia, Bolivia America, Latvia Europe, Mali Africa, Oman Asia, Ecuador America, Austria
Europe, Angola Africa, Mongolia Asia, Paraguay America, Serbia Europe, Niger Africa, Yemen Asia, Uruguay America,
Iceland Europe, Togo Africa, Bhutan Asia, Colombia America, Estonia Europe, Gabon Africa, Qatar Asia"""
COMPARATIVES = """good better, bad worse, far farther, big bigger, happy happier, easy easier, thin thinner, hot hotter,
little less, many more, old older, pretty prettier, large larger, busy busier, wet wetter, high higher, heavy heavier,
funny funnier, strong stronger, long longer, sad sadder, fat fatter, nice nicer, dry drier, angry angrier, late later,
noisy noisier, brave braver, red redder, lazy lazier"""
MONTHS = "January February March April May June July August September October November December".split()
NAMES = "Tom Anna Ben Lucy Sam Emma Max Julia".split()
THINGS = "apples books coins pencils marbles stamps cards shells".split()


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

    def final(self, text: str):
        """What text says in the end, whatever the right answer is, so that answers can be counted: the last number, the
        last word that the prompt does not hold, or all of an exact answer. None where there is no such thing."""
        if self.check == "number":
            return _number(text)
        if self.check == "exact":
            return text.strip()
        words = lambda x: re.findall(r"\w+", x.lower())
        own = [word for word in words(text) if word not in words(self.prompt)]
        return own[-1] if own else None


def _number(text):
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _pairs(text):
    return [pair.split() for pair in text.split(",")]


def _words(kind, question, text):
    return [Task(question.format(a), b, "word", kind) for a, b in _pairs(text)]


def _numbers(shuffle):
    """Sums, halves, and stories of one step: each pair of numbers once, with some name and some thing."""
    pairs = [(a, b) for a in range(2, 10) for b in range(2, 10)]
    number = lambda kind, prompt, answer: Task(prompt, str(answer), "number", kind)
    some = lambda: (shuffle.choice(NAMES), shuffle.choice(THINGS))
    for a, b in pairs:
        yield number("addition", f"What is {a} + {b}?", a + b)
    for a in range(2, 51):
        yield number("half", f"What is half of {2 * a}?", a)
    for (a, b), (name, x) in ((pair, some()) for pair in pairs):
        yield number("buys", f"{name} has {a} {x} and buys {b} more. How many {x} does {name} have in all?", a + b)
    for (a, b), (name, x) in ((pair, some()) for pair in pairs):
        yield number("gives", f"{name} has {a + b} {x} and gives away {b}. How many {x} are left?", a)
    for (a, b), (_, x) in ((pair, some()) for pair in pairs):
        yield number("boxes", f"There are {a} boxes with {b} {x} each. How many {x} are there in total?", a * b)


def make_tasks(n: int = 300, seed: int = 0) -> list[Task]:
    """n different tasks, drawn in turn from fourteen kinds until a kind runs out: facts, grammar, and arithmetic of
    school. The demo model's greedy answers of up to 24 tokens pass about two in five, by kind from a tenth to three
    quarters."""
    shuffle = random.Random(seed)
    months = zip(MONTHS, MONTHS[1:] + MONTHS[:1], strict=True)
    everything = [
        *_words("capital", "What is the capital of {}?", CAPITALS),
        *_words("opposite", "What is the opposite of {}?", OPPOSITES),
        *_words("past", "What is the past tense of {}?", PASTS),
        *_words("noun", "What is the noun of the verb {}?", NOUNS),
        *_words("currency", "What is the currency of {}?", CURRENCIES),
        *_words("language", "What language is spoken in {}?", LANGUAGES),
        *_words("continent", "On which continent is {}?", CONTINENTS),
        *_words("comparative", "What is the comparative form of {}?", COMPARATIVES),
        *(Task(f"Which month comes after {a}?", b, "word", "month") for a, b in months),
        # a sentence that only repeats the question must not pass
        *(task for task in _numbers(shuffle) if task.answer not in NUMBER.findall(task.prompt)),
    ]
    if not 1 <= n <= len(everything):
        raise ValueError(f"there are {len(everything)} tasks, asked for {n}")
    shuffle.shuffle(everything)
    by_kind = {}
    for task in everything:
        by_kind.setdefault(task.kind, []).append(task)
    chosen = []
    while len(chosen) < n:
        for tasks in by_kind.values():
            chosen += [tasks.pop()] if tasks else []
    return chosen[:n]


def split(n: int, seed: int = 0, file=None) -> tuple[list[Task], list[Task]]:
    """n tasks for a test, and a fifth as many others to choose settings on: this package's, or the first of a file that
    load_tasks reads, mixed by the seed. Raises ValueError where there are not so many."""
    other = max(5, n // 5)
    tasks = load_tasks(file)[: n + other] if file else make_tasks(n + other, seed)
    if len(tasks) < n + other:
        raise ValueError(f"{file} holds {len(tasks)} tasks, needed are {n} and {other} more to choose settings on")
    mixed = [tasks[i] for i in np.random.default_rng(seed).permutation(n + other)]
    return mixed[:n], mixed[n:]


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
