"""Data in, matplotlib Axes out; one function to a figure."""

from .attention import attention_entropy, attention_map, attention_positions, attention_tiles
from .causes import effects, layer_effects, patching
from .devices import placement, token_times
from .entropy import entropy_trace, lens_words, prediction, quadrants, token_heat, two_outcomes
from .forks import auroc_table, flip_rate, forked_answer, rates_by_kind, tuning_curves
from .proof import fault_table, layer_diff, op_noise, stream_norms, three_views
from .sampling import (
    accuracy_against_surprisal,
    accuracy_by_slope,
    branch_parameters,
    branch_planes,
    differences,
    kept,
    margins,
)
from .speed import batch_rates, cache_timing, roofline, tensor_sizes, token_parts
