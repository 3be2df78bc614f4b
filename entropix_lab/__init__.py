"""Llama in JAX, shown to be Meta's model op by op, for the study of entropy and varentropy."""

from . import (
    calibration,
    checkpoint,
    demo,
    entropy,
    evaluation,
    faults,
    hugging_face,
    plots,
    rope,
    samplers,
    tasks,
    timing,
    verdict,
    weights,
)
from .checkpoint import load_config
from .compare import compare, compare_compiler
from .config import CheckpointError, LlamaConfig
from .entropy import entropy_varentropy
from .forks import branch
from .generate import Generation, chat, generate
from .greedy import compare_greedy
from .model import KVCache, xfmr, xfmr_with_taps
from .reference import Reference, get_local_llama_logits, load_reference
from .report import Report
from .trace import Trace, trace_text
from .weights import LayerWeights, Model, XfmrWeights, load_and_convert_weights, load_model
