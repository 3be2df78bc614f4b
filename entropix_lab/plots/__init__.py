"""Data in, matplotlib Axes out; one function to a figure."""

from .attention import attention_entropy, attention_map, attention_positions, attention_tiles
from .causes import effects, layer_effects, patching
from .entropy import (
    entropy_trace,
    lens_entropy,
    lens_words,
    prediction,
    quadrants,
    token_heat,
    two_outcomes,
)
from .proof import fault_table, layer_diff, stream_norms
from .sampling import accuracy_against_surprisal, branch_plane, differences, margins
from .speed import cache_timing, tensor_sizes
