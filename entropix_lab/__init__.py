"""Llama in JAX, shown to be Meta's model op by op, for the study of entropy and varentropy."""

import importlib

from . import checkpoints as checkpoint
from . import entropy, evaluation, timing, verdict
from . import sampling as samplers
from .checkpoints import (
    demo,
    load_and_convert_weights,
    load_config,
    load_model,
    save_hugging_face,
    save_official,
    verify,
)
from .entropy import Trace, effects, entropy_varentropy, heads, intervene, sweep, trace_text
from .evaluation import calibration, tasks
from .generation.branching import branch
from .generation.generate import Generation, chat, generate
from .llama import rope, sharding, weights
from .llama.config import CheckpointError, LlamaConfig
from .llama.model import KVCache, xfmr, xfmr_with_taps
from .llama.sharding import mesh
from .llama.weights import LayerWeights, XfmrWeights
from .loaded_model import Model
from .proof import faults, hugging_face, taps
from .proof.compare import compare, compare_compiler
from .proof.greedy import compare_greedy
from .proof.hugging_face import load_hugging_face
from .proof.reference import Reference, get_local_llama_logits, load_reference
from .proof.report import Report


def __getattr__(name):
    """lab.plots, imported when it is first asked for: it brings matplotlib."""
    if name == "plots":
        return importlib.import_module(".plots", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
