"""Does it help? Samplers on the same tasks, and what can be said of the difference."""

from .runs import (
    Paired,
    Panel,
    Run,
    best_of,
    chat_prompts,
    evaluate,
    interval,
    make_run,
    matched_temperature,
    paired,
    step_seconds,
    within_budget,
)
