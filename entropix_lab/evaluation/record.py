"""What benchmarks/samplers.py wrote, read again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .statistics import matched, paired, tallied


@dataclass(frozen=True, eq=False)
class Record:
    """settings and environment of the benchmark, and its hours; answers: the greedy ones with their forks
    (forks.record), and kinds: of their tasks; runs: {name: Tallied} of all samplers on the same first tasks; tuning:
    the same on other tasks; chosen: {sampler: the name of its run with the setting that was best there}; heats:
    {slope: temperature where the entropy is 1 nat}."""

    settings: dict
    environment: str
    hours: float
    answers: list
    kinds: np.ndarray
    runs: dict
    tuning: dict
    chosen: dict
    heats: dict

    @property
    def n(self) -> int:
        """The number of tasks on which samplers are compared."""
        return len(self.runs["greedy"].passed)

    @property
    def curve(self) -> dict:
        """{temperature: Tallied} of plain sampling, greedy's at 0."""
        plain = {float(name[2:]): run for name, run in self.runs.items() if name.startswith("T ")}
        return dict(sorted(({0.0: self.runs["greedy"]} | plain).items()))

    def matched(self, names) -> dict:
        """{name: Matched}: plain sampling of the same surprisal as each run, but for those outside the curve."""
        ends = [self.curve[t].mean_surprisal for t in (min(self.curve), max(self.curve))]
        target = {name: self.runs[name].mean_surprisal for name in names}
        return {name: matched(self.curve, x) for name, x in target.items() if ends[0] <= x <= ends[1]}

    def against_curve(self, names) -> dict:
        """{name: (Matched, Paired)}: each run against those of `matched`."""
        lines = self.matched(names).items()
        return {name: (line, paired(self.runs[name].accuracy, line.accuracy)) for name, line in lines}

    def off_curve(self, names) -> dict:
        """{name: accuracy of each task less that of plain sampling of the same surprisal [n]}."""
        return {name: self.runs[name].accuracy - line.accuracy for name, line in self.matched(names).items()}

    def differences(self, pairs) -> dict:
        """{"a against b": Paired} of pairs of names."""
        return {f"{a} against {b}": paired(self.runs[a].accuracy, self.runs[b].accuracy) for a, b in pairs}

    def settings_of(self, sampler) -> dict:
        """{setting: Tallied} of the other tasks, as they were tried."""
        named = ((*name.rsplit(" ", 1), run) for name, run in self.tuning.items())
        return {setting: run for name, setting, run in named if name == sampler}

    def only(self, of) -> "Record":
        """The same of the test's tasks of these kinds."""
        some = np.isin(self.kinds, of)
        cut = lambda x: replace(x, **{k: getattr(x, k)[some[: self.n]] for k in ("passed", "tokens", "surprisal")})
        answers = [row for row, kept in zip(self.answers, some, strict=True) if kept]
        runs = {name: cut(run) for name, run in self.runs.items()}
        return replace(self, answers=answers, kinds=self.kinds[some], runs=runs)


def read_record(file) -> Record:
    """The Record of outputs/NAME.json and of NAME_forks.json beside it. Of runs that are not equally far, the tasks
    that all have. Raises ValueError where one of the files is missing, or a part of the benchmark has not begun."""
    file = Path(file)
    for needed in (forks := file.with_name(f"{file.stem}_forks.json"), file):
        if not needed.exists():
            raise ValueError(f"{needed} does not exist: `python benchmarks/samplers.py --name {file.stem}` writes it")
    study, of_forks = json.loads(file.read_text()), json.loads(forks.read_text())
    test, tuning = ({k: r for k, r in study["runs"].items() if r["part"] == part} for part in ("test", "tuning"))
    chosen = study.get("tuned", {})
    lacking = {"greedy", "branching", *chosen.values()} - set(test)
    if lacking or not chosen:
        found = ", ".join(sorted(lacking)) or "tuned"
        raise ValueError(
            f"{file} has no run {found}: `python benchmarks/samplers.py --name {file.stem}` goes on with it"
        )
    first = min(len(row["passed"]) for row in test.values())
    return Record(
        study["settings"],
        study["environment"],
        (study["seconds"] + of_forks["seconds"]) / 3600,
        of_forks["tasks"],
        np.array(of_forks["kinds"]["test"]),
        {name: tallied(row, first) for name, row in test.items()},
        {name.removeprefix("tuning "): tallied(row) for name, row in tuning.items()},
        chosen,
        {float(slope): t for slope, t in study["slope temperatures"].items()},
    )
