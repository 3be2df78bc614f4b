"""Does it help? Samplers on the same tasks, the forks of their answers, and what can be said of the difference."""

from . import forks
from .runs import (
    Panel,
    Run,
    best_of,
    chat_prompts,
    evaluate,
    majority,
    make_run,
    step_seconds,
    within_budget,
)
from .statistics import Paired, Tallied, by_task, holm, interval, matched, paired, tallied
