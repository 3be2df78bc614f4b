"""Does hesitation matter? Samplers on tasks that a program can check, and the forks of greedy answers.

    python benchmarks/samplers.py                              # what is committed: two hours of two busy cores
    python benchmarks/samplers.py --model Llama3.2-1B-Instruct --dtype bfloat16 --name samplers_1b
    python benchmarks/samplers.py --task-file gsm8k.jsonl --max-new-tokens 256 --system ""

Writes outputs/NAME.json and outputs/NAME_forks.json, which notebooks/12_does_it_help.ipynb shows. It writes after every
block of tasks, and begins where it ended. In turn:
forks     at every token of every greedy answer the second choice instead, finished greedily
curve     temperatures; at one of them twice as many samples, and of these the likeliest and the majority
default   the other samplers with the numbers that their authors or their code name (dirichlet's are this package's)
slopes    the temperature as a function of the entropy, five slopes at three temperatures on other tasks (a fifth of
          their number); then on the test's tasks, each where it is as surprising as plain sampling at 0.7
tuning    five settings of each sampler on those other tasks
tuned     the setting of each sampler that passed most of the other tasks, on the test's tasks
branching at forks several continuations, and the best of as many whole answers as cost the same
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import entropix_lab as lab
from entropix_lab.evaluation import best_of, chat_prompts, evaluate, forks, majority, make_run, within_budget

samplers = lab.samplers
CURVE = (0.2, 0.4, 0.6, 0.7, 0.8, 1.0, 1.2)
FAMILIES = {  # a sampler of one number, five settings of it, and the one that is its default
    "T": (samplers.temperature, (0.2, 0.4, 0.6, 0.8, 1.0), 1.0),
    "top-p": (samplers.top_p, (0.3, 0.5, 0.7, 0.8, 0.9), 0.9),
    "min-p": (samplers.min_p, (0.05, 0.1, 0.2, 0.4, 0.6), 0.1),
    "top-n-sigma": (samplers.top_n_sigma, (0.25, 0.5, 1.0, 1.5, 2.0), 1.0),
    "adaptive cceeb84": (lambda t: samplers.adaptive("cceeb84", temperature=t), (0.2, 0.4, 0.666, 0.8, 1.0), 0.666),
    "adaptive 9d41be6": (lambda t: samplers.adaptive("9d41be6", temperature=t), (0.2, 0.4, 0.6, 0.8, 1.0), 0.8),
    "dirichlet": (lambda w: samplers.dirichlet(target_ent=(w,) * 4), (0.05, 0.1, 0.15, 0.2, 0.25), 0.25),
}
AT, BLOCK, ROWS = 0.7, 30, 96
# the temperatures at 1 nat between which a slope is as surprising as none at AT
SLOPES = {-0.5: (AT, 0.85, 1.1), -0.25: (AT, 0.85, 1.1), 0.0: (AT,), 0.25: (0.35, 0.4, 0.5), 0.5: (0.2, 0.27, 0.4)}


def numbers(values, digits=4):
    return [float(f"{x:.{digits}g}") for x in np.asarray(values, float)]


class Study:
    """The two files, and what they hold so far."""

    def __init__(self, args):
        self.args, self.started, self.limit = args, time.perf_counter(), None
        self.model = lab.load_model(args.model, args.dtype)
        test, tuning = lab.tasks.split(args.tasks, args.seed, args.task_file)
        self.tasks = {"test": test, "tuning": tuning}
        settings = {k: v for k, v in vars(args).items() if k not in ("name", "first", "parts", "outputs")}
        kinds = {part: [task.kind for task in tasks] for part, tasks in self.tasks.items()}
        head = {"settings": settings, "environment": lab.verdict.environment(), "seconds": 0, "kinds": kinds}
        self.data = {}
        for name, empty in ((args.name, {"runs": {}}), (f"{args.name}_forks", {"tasks": []})):
            path = args.outputs / f"{name}.json"
            self.data[name] = json.loads(path.read_text()) if path.exists() else head | empty
            if self.data[name]["settings"] != settings:
                raise SystemExit(
                    f"{path} was made with {self.data[name]['settings']}: remove it, or take another --name"
                )
        self.runs = self.data[args.name]["runs"]

    def write(self, name):
        """The file again with a line to each run or task, whole or not at all."""
        data, now = self.data[name], time.perf_counter()
        data["seconds"], self.started = data["seconds"] + round(now - self.started, 1), now
        lines = lambda x: ",\n".join(x)
        body = [f'"{k}": {json.dumps(v)}' for k, v in data.items() if k not in ("runs", "tasks")]
        if "runs" in data:
            rows = lines(f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in data["runs"].items())
            body.append(f'"runs": {{\n{rows}\n}}')
        else:
            rows = lines(f"  {json.dumps(task, separators=(',', ':'))}" for task in data["tasks"])
            body.append(f'"tasks": [\n{rows}\n]')
        file = self.args.outputs / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text("{\n" + lines(body) + "\n}\n")
        partial.replace(file)

    def add(self, name, part, run, spent=None):
        """A block of a run: of each task how many answers passed, their tokens, and their surprisal (nats, summed)."""
        surprisal = (run.surprisal * run.length).sum(1)
        row = self.runs.setdefault(
            name, {"part": part, "samples": run.passed.shape[1], "passed": [], "tokens": [], "surprisal": []}
        )
        row["passed"] += run.passed.sum(1).tolist()
        row["tokens"] += (run.length.sum(1) if spent is None else spent).tolist()
        row["surprisal"] += numbers(surprisal)

    def blocks(self, name, part):
        """The blocks of tasks that the run of that name has not seen, with the number of the first task."""
        tasks = self.tasks[part][: self.limit]
        done = len(self.runs.get(name, {"passed": ()})["passed"])
        return [(i, tasks[i : i + BLOCK]) for i in range(done, len(tasks), BLOCK)]

    def panel(self, panel, part, samples, more=None):
        """Run a dict of samplers in one program, block after block. more(tasks, runs): what else a block gives."""
        panel = {name: sampler for name, sampler in panel.items() if self.blocks(name, part)}
        for i, tasks in self.blocks(next(iter(panel)), part) if panel else ():
            args = self.args
            runs = evaluate(self.model, tasks, panel, samples, args.max_new_tokens, args.seed + i, args.system, ROWS)
            for name, run in runs.items():
                self.add(name, part, run)
            for name, (run, spent) in (more(tasks, runs) if more else {}).items():
                self.add(name, part, run, spent)
            self.write(self.args.name)
            print(f"{part} {i + len(tasks)}: {', '.join(panel)}", round(time.process_time()), "s", flush=True)

    def accuracy(self, name):
        row = self.runs[name]
        return float(np.mean(row["passed"]) / row["samples"])

    def surprisal(self, name):
        return float(np.sum(self.runs[name]["surprisal"]) / np.sum(self.runs[name]["tokens"]))

    # the parts, in their order

    def forks(self):
        name, args = f"{self.args.name}_forks", self.args
        rows = self.data[name]["tasks"]
        for i in range(len(rows), args.tasks, BLOCK):
            tasks = self.tasks["test"][i : i + BLOCK]
            for f in forks.fork_every_token(self.model, tasks, args.max_new_tokens, args.system, BLOCK, ROWS):
                pieces = [self.model.tokenizer.decode([t]) for t in f.tokens]
                rows.append(
                    forks.record(f) | {"pieces": pieces, "second": [self.model.tokenizer.decode([t]) for t in f.second]}
                )
            self.write(name)
            print(f"forks {len(rows)}", flush=True)
        self.runs["greedy"] = {
            "part": "test",
            "samples": 1,
            "passed": [int(row["passed"]) for row in rows],
            "tokens": [len(row["entropy"]) for row in rows],
            "surprisal": numbers([-np.sum(np.log(row["top_probability"])) for row in rows]),
        }

    def curve(self):
        def choices(tasks, runs):
            run = runs[f"T {AT}"]
            k, spent = run.passed.shape[1], run.length.sum(1)
            chosen = {"likeliest": best_of(run, k), "majority": majority(run, tasks)}
            return {f"{name} of {k} at T {AT}": (chosen[name], spent) for name in chosen}

        self.panel({f"T {t}": samplers.temperature(t) for t in CURVE if t != AT}, "test", self.args.samples)
        self.panel({f"T {AT}": samplers.temperature(AT)}, "test", 2 * self.args.samples, choices)

    def default(self):
        panel = {f"{name} {value}": make(value) for name, (make, _, value) in FAMILIES.items() if name != "T"}
        self.panel(panel, "test", self.args.samples)

    def tuning(self):
        each = [(name, make, value) for name, (make, values, _) in FAMILIES.items() for value in values]
        panel = {f"tuning {name} {value}": make(value) for name, make, value in each}
        self.panel(panel, "tuning", self.args.tuning_samples)

    def slopes(self):
        name = lambda slope, t: f"tuning slope {slope} T {t}"
        tried = {name(slope, t): samplers.sloped(t, slope) for slope, heats in SLOPES.items() for t in heats}
        self.panel(tried, "tuning", self.args.tuning_samples)
        target, panel = np.log(self.surprisal(name(0.0, AT))), {}
        for slope, heats in SLOPES.items():
            known = np.log([self.surprisal(name(slope, t)) for t in heats])
            t = round(float(np.exp(np.interp(target, np.maximum.accumulate(known), np.log(heats)))), 4)
            self.data[self.args.name].setdefault("slope temperatures", {})[str(slope)] = t
            panel |= {f"slope {slope}": samplers.sloped(t, slope)} if slope else {}  # without a slope it is the curve's
        self.panel(panel, "test", self.args.samples)

    def tuned(self):
        panel, chosen = {}, {}
        for name, (make, values, _) in FAMILIES.items():
            best = max(values, key=lambda value: self.accuracy(f"tuning {name} {value}"))
            chosen[name] = f"{name} {best}"
            panel[f"{name} {best}"] = make(best)
        self.data[self.args.name]["tuned"] = chosen
        self.panel(panel, "test", self.args.samples)

    def branching(self):
        args, drawing = self.args, samplers.temperature(AT)
        for i, tasks in self.blocks("branching", "test"):
            prompts = chat_prompts(self.model, tasks, args.system)
            found = lab.branch(self.model, prompts, args.max_new_tokens, drawing, n=4, m=8, seed=args.seed + i)
            spent = np.array([row.spent for row in found])
            several = evaluate(
                self.model,
                tasks,
                {"": drawing},
                2 * args.samples,
                args.max_new_tokens,
                args.seed + i,
                args.system,
                ROWS,
            )[""]
            k = within_budget(several, spent)
            cost = np.take_along_axis(np.cumsum(several.length, 1), k[:, None] - 1, 1)[:, 0]
            self.add("branching", "test", make_run("", tasks, [[row] for row in found]), spent)
            self.add("likeliest at branching's cost", "test", best_of(several, k), cost)
            self.write(args.name)
            print(f"branching {i + len(tasks)}", flush=True)


PARTS = ("forks", "curve", "default", "slopes", "tuning", "tuned", "branching")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tasks", type=int, default=300, help="of the test; a fifth as many more are for tuning")
    parser.add_argument("--samples", type=int, default=4, help="of each task under each sampler")
    parser.add_argument("--tuning-samples", type=int, default=1, help="of each other task under each setting")
    parser.add_argument("--task-file", help="JSON lines, also in GSM8K's format, in place of the package's own tasks")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--system", default="Answer briefly.", help="the system message")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="samplers", help="of the files")
    parser.add_argument(
        "--outputs", type=lambda x: Path(x).absolute(), default=lab.verdict.outputs_dir(), help="the folder to write to"
    )
    parser.add_argument(
        "--first", type=int, default=None, help="all parts on so many tasks, then on a block more, and so on"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="those that run, in the order above")
    study = Study(parser.parse_args())
    tasks = study.args.tasks
    for limit in (*range(study.args.first or tasks, tasks, BLOCK), tasks):
        study.limit = limit
        for part in (p for p in PARTS if p in study.args.parts):
            getattr(study, part)()
            study.write(study.args.name)


if __name__ == "__main__":
    main()
