"""Does it help? Samplers on the same tasks, the forks of their answers, and what can be said of the difference."""

from . import forks, texts, words
from .record import Record, read_record
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
from .statistics import (
    Paired,
    Tallied,
    corrected,
    holm,
    interval,
    matched,
    paired,
    rematched,
    resampled,
    share,
    spread,
    tallied,
)
