"""Is it rounding noise, or a bug, and where? Every tap of ours beside another implementation's, in three views.

accumulated: both models from the same tokens. local: every layer of ours on the other's own input to that layer, so
that no error travels. op: every single operation of ours on the other's own inputs to it, which names the culprit.
The measure is the relative L2 distance of every position. What rounding explains is not guessed: correct variants of
our forward (variants.VARIANTS) are run in the same view on the same tokens, and the largest of their distances is the
floor. The truth (truth.py) says how far either model is from what both would compute without rounding.

The way: prompts -> tokens -> the reference's taps -> ours, the truth and the variants -> limits -> Report.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from .. import verdict
from ..compiler import EXACT, canary, without_fusions
from ..llama.config import ROPE_SCALING
from ..llama.model import KVCache, check_inputs
from ..llama.sharding import gathered
from .comparison import Comparison, Judged
from .hugging_face import HuggingFaceTaps
from .limits import rows
from .passes import INNOCENT, Pass, Programs, patched
from .reference import Reference, load_reference
from .report import Report
from .taps import OPS, full_name, tap_names

MODES = ("prefill", "cached")


def compare(model, reference, prompts, mode="prefill", replace=None, judged=None) -> Report:
    """The taps of model beside those of another implementation, with a noise floor for each, and a verdict.

    reference: a Reference of the same checkpoint and dtype; a folder or name to load one from; transformers' own model
    (load_hugging_face, or any LlamaForCausalLM); or a mapping of taps of the same tokens under the names that taps.py
    lists (a dict, an opened .npz file), of which some may be missing.
    prompts: text, token ids [T] or [B,T], or a list of texts or rows of ids of different lengths, which are padded on
    the right; padding is not compared. mode: "cached" runs ours as a prompt, a piece of several tokens and two single
    ones through the KV cache, against the other's single pass; rows then need five tokens. replace: {name: function}
    in place of functions of model.py, in ours alone: another formula, or a bug on trial. The floor and the truth keep
    the originals. "linear" may take x and w alone. (Where a sum over wo or w2 is spread over devices, it then gets x
    and w in float32, and the sum of all parts is rounded once.)
    judged: hand the same dict, empty at first, to comparisons that differ in replace alone: what is not on trial then
    runs once.

    Memory: both models, one layer's taps of seven runs (up to 256 tokens in all views at once), the stream after every
    layer, and the logits of every run.
    Raises ValueError where the two cannot be compared.
    """
    canary()
    return compare_programs(model, reference, prompts, mode, programs_for(replace), judged)


def compare_compiler(model, prompts, replace=None, judged=None) -> Report:
    """Is this compiler safe for this model? Our taps beside those of the same programs without XLA's optional fusions.

    A difference beyond rounding is the compiler's, at the tap that the Report names. prompts and replace as in compare.
    judged: that of a compare of the same prompts. Where that passed with every tap, its noise is taken over: the inputs
    are the same but for rounding. Where the installed jaxlib has no such fusions, the two are the same programs.
    """
    programs = programs_for(replace)
    unfused = Programs(tuple((replace or {}).items()), EXACT | without_fusions())
    judged = judged if judged and judged.get("passed") else {}
    judged = {k: x._replace(plain=None) if isinstance(x, Judged) else x for k, x in judged.items()}
    return compare_programs(model, OurTaps(model, unfused), prompts, "prefill", programs, judged)


def programs_for(replace) -> Programs:
    """The programs of the forward with a dict of functions on trial; those that are there already where there is none,
    and nobody has patched the forward. Raises ValueError for what is no dict of its functions."""
    if not isinstance(replace or {}, Mapping):
        raise ValueError(f"replace: expected a dict of {{name: function}} of model.py, found {type(replace).__name__}")
    return Programs(tuple((replace or {}).items())) if replace or patched() else INNOCENT


class OurTaps:
    """Our own taps by other programs, handed out as another implementation's are."""

    def __init__(self, model, programs):
        self.model, self.programs = model, programs

    def taps(self, tokens, sink):
        """sink(name, value) takes every value of tokens [B,T] in the order of execution."""
        run = Pass(self.model.config, tokens.shape, programs=self.programs)
        x = gathered(self.model.weights.tok_embeddings[tokens])
        sink("tok_embeddings", x)
        for i, w in enumerate(self.model.weights.layer_weights):
            x, taps = run.layer(w, x, {}, False)
            for op in OPS:
                sink(full_name(i, op), taps[op])
        for name, value in run.head(self.model.weights, x, {}, False).items():
            sink(name, value)


def compare_programs(model, reference, prompts, mode, programs, judged=None) -> Report:
    """compare, with functions or compiler options on trial inside programs: what is traced once serves all prompts of
    one shape. judged: as in Comparison."""
    if not hasattr(model, "weights"):
        raise ValueError(f"expected a model of load_model, found {type(model).__name__}")
    tokens, valid = _padded(model, prompts)
    _check(model, valid, mode)
    hand_out, theirs, metas = _taps_of(model, reference, tokens)
    work = Comparison(model, tokens, valid, mode, programs, judged)
    hand_out(work.take)
    taps = tuple(rows(work.found, model.dtype, metas, work.samples))
    where = verdict.environment(**EXACT, mode=mode)
    expected = len(tap_names(model.config.n_layers))
    report = Report(model.name, model.dtype, taps, work.output, where, theirs, expected, work.note)
    work.judged.setdefault("passed", report.passed and len(taps) == expected)
    return report


def _check(model, valid, mode):
    """Raise ValueError for an unknown mode or dtype, and for rows too short for the mode."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, found {mode!r}")
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"expected a model in float32 or bfloat16, found {model.dtype}")
    if mode == "cached" and valid.sum(1).min() < 5:
        raise ValueError(f"mode='cached' needs rows of at least 5 tokens, the shortest has {valid.sum(1).min()}")


def _taps_of(model, reference, tokens):
    """(hand_out, theirs, metas). hand_out(sink) calls sink(name, value) for every tap of tokens [B,T] in order; theirs:
    whose they are, in the possessive; metas: whether they are Meta's. Raises ValueError for another model's."""
    if isinstance(reference, Mapping):
        theirs, taps = "the reference's", _mapping(model, reference)
        hand_out = lambda sink: [sink(name, taps.get(name)) for name in tap_names(model.config.n_layers)]
    else:
        if isinstance(reference, OurTaps):
            theirs, source = "the unfused programs'", reference
        elif hasattr(reference, "named_modules"):
            theirs, source = "transformers'", HuggingFaceTaps(reference)
            _check_alike(model, source, "transformers' model")
        else:
            theirs, source = "Meta's", reference_for(model, reference, *tokens.shape)
        hand_out = lambda sink: source.taps(tokens, sink=sink)
    check_inputs(model.config, tokens, 0, jax.eval_shape(lambda: KVCache.new(model.config, *tokens.shape)))
    return hand_out, theirs, theirs == "Meta's"


def _mapping(model, taps) -> dict:
    """Another implementation's taps by name, without those that are None. Raises ValueError for unknown names."""
    expected = tap_names(model.config.n_layers)
    if unknown := sorted(map(repr, set(taps) - set(expected))):
        raise ValueError(
            f"unknown taps [{', '.join(unknown[:5])}]: expected names as in entropix_lab.taps, like {expected[1:4]}"
        )
    taps = {name: x for name in expected if (x := taps.get(name)) is not None}
    if not taps:
        raise ValueError("the reference has no taps")
    return taps


def reference_for(model, reference, rows, length) -> Reference:
    """The Reference, loaded with room for rows of a length where it is a path. Raises ValueError if it is not one of
    the same model: what its weights and its RoPE are made of may differ, that is for the comparison to find."""
    if model.config.unlike_metas_code:
        raise ValueError(
            f"by design, not by a bug, the model is not what Meta's code computes: {model.config.unlike_metas_code}. "
            "Compare it with transformers' (lab.hugging_face.load_hugging_face(model.path)), or Meta's code with "
            "dataclasses.replace(model, config=model.config.in_metas_code)"
        )
    if isinstance(reference, str | Path):
        reference = load_reference(reference, model.dtype, max_seq_len=length, max_batch_size=rows)
    if not isinstance(reference, Reference):
        raise ValueError(
            "expected a Reference, a path to load one from, transformers' Llama, or a mapping of taps, found "
            f"{type(reference).__name__}"
        )
    _check_alike(model, reference, "the reference")
    return reference


def _check_alike(model, reference, what):
    """Raise ValueError where dtype or sizes differ, or, by design, the numbers that scale RoPE."""
    if reference.dtype != model.dtype:
        raise ValueError(f"the model is {model.dtype}, {what} {reference.dtype}: load both alike")
    for size in ("n_layers", "dim", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        ours, theirs = getattr(model.config, size), getattr(reference.config, size)
        if ours != theirs:
            raise ValueError(f"{size} is {ours} in the model, {theirs} in {what}: load both from one checkpoint")
    for name in ROPE_SCALING if model.config.use_scaled_rope and reference.config.use_scaled_rope else ():
        ours, theirs = getattr(model.config, name), getattr(reference.config, name)
        if ours != theirs:
            raise ValueError(f"by design, not by a bug, {name} is {ours} in the model and {theirs} in {what}")


def _padded(model, prompts):
    """(tokens [B,T] padded on the right, valid [B,T]) of whatever compare takes as prompts."""
    rows = model.prompt_rows(prompts)
    valid = np.arange(max(map(len, rows))) < np.array([len(r) for r in rows])[:, None]
    tokens = np.zeros(valid.shape, np.int32)
    tokens[valid] = np.concatenate(rows)
    return tokens, valid
