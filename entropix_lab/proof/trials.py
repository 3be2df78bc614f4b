"""A change of the forward on trial: what it is, where it should be named, and what a comparison says of it."""

from collections.abc import Callable
from typing import NamedTuple

from .compare import compare_programs, programs_for
from .report import VIEWS, Report


class Finding(NamedTuple):
    """expected and found: taps ("none" where there is no divergence); views: those in which the tap found is beyond its
    limit, limit_ratio: how many times, the furthest. allclose, flips of the argmax and the largest KL (nats) are of the
    logits."""

    name: str
    what: str
    expected: str
    found: str
    views: tuple[str, ...]
    limit_ratio: float
    allclose: bool
    flips: int
    kl_max: float


class Fault(NamedTuple):
    """A named change. change: Model -> Model; replace: functions of model.py, or config -> those; tap: the first value
    that must differ; needs: what a checkpoint or dtype must have for the fault to exist there; seen: where it was;
    tokens and theirs, of controls: the ids [B,T] that are compared, given a prompt's, and what they are compared with,
    given the reference and these ids."""

    name: str
    what: str
    tap: str
    change: Callable = lambda model: model
    replace: dict | Callable = {}
    mode: str = "prefill"
    needs: str = ""
    seen: str = ""
    tokens: Callable | None = None
    theirs: Callable | None = None

    def compare(self, model, reference, prompts, judged=None) -> Report:
        """The Report of model with this fault in it: first_divergence.tap should be self.first_tap(model). judged: as
        in reports."""
        return next(self.reports(model, reference, [prompts], judged))

    def reports(self, model, reference, prompts_of_each, judged=None):
        """A Report for each prompt: those of one length share their compiled programs. judged: a dict that keeps what
        faults of the same model, reference and prompts have in common."""
        replace = self.replace(model.config) if callable(self.replace) else self.replace
        changed_model, programs = self.change(model), programs_for(replace)
        shared = changed_model is model and not self.tokens and not self.theirs
        for i, prompts in enumerate(prompts_of_each):
            prompts = self.tokens(model.encode(prompts)) if self.tokens else prompts
            other = self.theirs(reference, model.encode(prompts)) if self.theirs else reference
            common = judged.setdefault((self.mode, i), {}) if shared and judged is not None else None
            yield compare_programs(changed_model, other, prompts, self.mode, programs, common)

    def first_tap(self, model) -> str:
        """The first value that this fault changes in this model."""
        return self.tap.format(middle=model.config.n_layers // 2)

    def finding(self, model, report) -> "Finding":
        """What a report of this fault says, and what the logits alone would have said."""
        row, out = report.first_divergence, report.output
        views = [view for view in VIEWS if row and getattr(row, view).limit_ratio > 1]
        return Finding(
            self.name,
            self.what,
            self.first_tap(model),
            row.tap if row else "none",
            tuple(views),
            row.limit_ratio if row else max(r.limit_ratio for r in report.rows),
            out.allclose,
            out.positions - out.argmax_equal,
            out.kl_max,
        )

    def exists_in(self, model) -> bool:
        """Whether this model and dtype can have the fault at all."""
        have = {model.dtype} | ({"scaled RoPE"} if model.config.use_scaled_rope else set())
        return not self.needs or self.needs in have
