"""Is it rounding noise, or a bug, and where? Every tap of ours beside another implementation's, in three views.

accumulated: both models from the same tokens. local: every layer of ours on the other's own input to that layer, so
that no error travels. op: every single operation of ours on the other's own inputs to it, which names the culprit.
The measure is the relative L2 distance of every position. What rounding explains is not guessed: correct variants of
our forward (taps.VARIANTS) are run in the same view on the same tokens, and the largest of their distances from ours is
the floor. A float64 run of ours, the truth, says how far either model is from what both would compute without rounding.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from . import verdict
from .generate import generate, prompt_rows
from .limits import Found, rows
from .model import KVCache, at_least_float32, check_inputs
from .reference import Reference, load_reference
from .report import ATOL, RTOL, VIEWS, Decoded, Greedy, Output, Report
from .taps import (
    EXACT,
    OPS,
    OURS,
    OUTER_OPS,
    TRUTH,
    VARIANTS,
    Pass,
    full_name,
    over,
    relative_error,
    tap_names,
    tap_shape,
    whole_logits,
)

MODES = ("prefill", "cached")


def compare(model, reference, prompts, mode="prefill", replace=None) -> Report:
    """The taps of model beside those of another implementation, with a noise floor for each, and a verdict.

    reference: a Reference of the same checkpoint and dtype; a folder or name to load one from; or a mapping of taps of
    the same tokens under the names that taps.py lists (a dict, an opened .npz file), of which some may be missing.
    prompts: text, token ids [T] or [B,T], or a list of texts or rows of ids of different lengths, which are padded on
    the right; padding is not compared. mode: "cached" runs ours as a prompt, a piece of several tokens and two single
    ones through the KV cache, against the other's single pass; rows then need five tokens. replace: {name: function} to
    stand for functions of model.py in ours, in the truth and in the variants alike: another formula, or a bug on trial.
    Like those they return the dtype of what they are given, also where that is float64.

    Memory is that of the two models, one layer's taps of six runs, and their logits. Raises ValueError where the two
    cannot be compared.
    """
    tokens, valid = _padded(model, prompts)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, found {mode!r}")
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"expected a model in float32 or bfloat16, found {model.dtype}")
    if mode == "cached" and valid.sum(1).min() < 5:
        raise ValueError(f"mode='cached' needs rows of at least 5 tokens, the shortest has {valid.sum(1).min()}")
    metas = not isinstance(reference, Mapping)
    if metas:
        reference = _reference_for(model, reference, *tokens.shape)
    check_inputs(model.config, tokens, 0, jax.eval_shape(lambda: KVCache.new(model.config, *tokens.shape)))
    work = _Comparison(model, tokens, valid, mode, tuple(sorted((replace or {}).items())))
    if not metas:
        expected = tap_names(model.config.n_layers)
        if unknown := sorted(set(reference) - set(expected)):
            raise ValueError(
                f"unknown taps {unknown[:5]}: expected names as in entropix_lab.taps, like {expected[1:4]}"
            )
        if not set(reference):
            raise ValueError("the reference has no taps")
        for name in expected:
            work.take(name, reference.get(name))
    else:
        reference.taps(tokens, sink=work.take)
    taps = tuple(rows(work.found, model.dtype, metas, int(valid.sum())))
    where = verdict.environment(**EXACT, matmul=model.matmul_precision or "default", mode=mode)
    return Report(model.name, model.dtype, taps, work.output, where, "Meta's" if metas else "the reference's")


def compare_greedy(model, reference, prompts, max_new_tokens=64, **options) -> Greedy:
    """Free-running greedy decoding of each prompt by both models, token for token.

    reference: a Reference of the same checkpoint and dtype, or a folder or name to load one from. options are
    generate's, without a sampler. The first token that differs is reported with the margin between the two likeliest
    logits: within rounding it is a tie, and no failure. Raises ValueError where the two cannot be compared.
    """
    if "sampler" in options:
        raise ValueError("compare_greedy has no sampler: Meta's model decodes greedily")
    longest = max(map(len, prompt_rows(model, prompts)), default=0)
    reference = _reference_for(model, reference, 1, longest + max_new_tokens)
    ours = generate(model, prompts, max_new_tokens, **({"stop": ()} | options))
    theirs = [reference.greedy(g.prompt_tokens, len(g.tokens)) for g in ours]
    rows = []
    for g, other in zip(ours, theirs, strict=True):
        differ = np.flatnonzero(g.tokens != other)
        where = (int(i := differ[0]), float(g.margins[i]), bool(i in g.ties)) if differ.size else ()
        rows.append(Decoded(len(g.tokens), *where))
    return Greedy(model.name, model.dtype, tuple(rows))


def _reference_for(model, reference, rows, length) -> Reference:
    """The Reference, loaded with room for rows of a length where it is a path. Raises ValueError if it is not one of
    the same model: what its weights and its RoPE are made of may differ, that is for the comparison to find."""
    if model.config.use_scaled_rope and model.config.rope_scaling_factor != 8:
        raise ValueError("the model differs from Meta's code by design: rope_scaling_factor is not 8")
    if isinstance(reference, str | Path):
        reference = load_reference(reference, model.dtype, max_seq_len=length, max_batch_size=rows)
    if not isinstance(reference, Reference):
        raise ValueError(
            f"expected a Reference, a path to load one from, or a mapping of taps, found {type(reference).__name__}"
        )
    if reference.dtype != model.dtype:
        raise ValueError(f"the model is {model.dtype}, the reference {reference.dtype}: load both alike")
    for size in ("n_layers", "dim", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        ours, theirs = getattr(model.config, size), getattr(reference.config, size)
        if ours != theirs:
            raise ValueError(f"{size} is {ours} in the model, {theirs} in the reference: load both from one checkpoint")
    return reference


class _Comparison:
    """Takes the other implementation's taps one by one, in the order of execution, and compares layer by layer."""

    def __init__(self, model, tokens, valid, mode, replace):
        self.model, self.tokens, self.valid, self.replace, self.mode = model, tokens, valid, replace, mode
        self.found, self.output, self.layer, self.group = [], None, 0, {}
        self.own_layer = True  # whether the local view's next input is the other's own
        self.plan = _cached_plan(valid) if mode == "cached" else None
        self.runs = {v.name: Pass(model.config, tokens.shape, v, replace, self.plan) for v in (OURS, TRUTH, *VARIANTS)}
        self.streams = {}  # (view, who) -> the stream that enters the next layer

    def take(self, name, value):
        """value: an array, or None where the other implementation does not have this tap."""
        prefix = f"layers.{self.layer}."
        if value is not None:
            value = jnp.asarray(self._checked(name, value))
            if not self.valid.all():  # what their padding holds may be anything, and 0 * NaN is NaN
                value = jnp.where(np.expand_dims(self.valid, over(name, value)), value, 0)
            self.group[(name + ".").removeprefix(prefix).removesuffix(".")] = value
        with jax.default_matmul_precision(self.model.matmul_precision):
            if name == "tok_embeddings":
                self._embeddings()
            elif name + "." == prefix:
                self._compare(lambda op: full_name(self.layer, op), self._run_layer)
                self._restart_from("")
                self.layer += 1
            elif name == "output":
                self._compare(lambda op: op, self._run_head)
            else:
                return
        self.group = {}

    def _checked(self, name, value):
        try:
            value = value if isinstance(value, jax.Array) else np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # a torch tensor in bfloat16, with a gradient, on a GPU
            raise ValueError(
                f"{name}: NumPy cannot read {type(value)} ({error}): hand over float32, if it is torch's with "
                "x.detach().float().cpu().numpy()"
            ) from error
        expected = tap_shape(name, self.model.config, *self.tokens.shape)
        if value.shape != expected:
            raise ValueError(f"{name}: expected the shape {expected}, the reference has {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):  # |V2 is what np.load makes of bfloat16
            raise ValueError(f"{name}: expected floats, found {value.dtype}: save taps as float32")
        return value

    def _embeddings(self):
        x = self.model.weights.tok_embeddings[self.tokens]
        for who in self.runs:
            with jax.enable_x64(True):
                start = x.astype(jnp.float64) if who == "truth" else x
            self.streams |= {(view, who): start for view in VIEWS}
        self._compare(lambda op: op, lambda who, view: {"tok_embeddings": self.streams[view, who]})
        self._restart_from("tok_embeddings")

    def _restart_from(self, op):
        """Errors do not travel in the local view: the next layer's input is what the other model handed on."""
        self.own_layer = op in self.group
        if self.own_layer:
            for who in self.runs:
                x = self.streams["local", who]
                with jax.enable_x64(True):
                    self.streams["local", who] = self.streams["op", who] = self.group[op].astype(x.dtype)

    def _run_layer(self, who, view):
        w = self.model.weights.layer_weights[self.layer]
        try:
            x, taps = self.runs[who].layer(w, self.streams[view, who], self.group, view == "op")
        except TypeError as error:
            if not self.replace:
                raise
            names = ", ".join(name for name, _ in self.replace)
            raise ValueError(
                f"with {names} replaced, {who} does not run: a function on trial takes what the one of model.py takes "
                f"and returns the dtype that it is given ({error})"
            ) from error
        self.streams[view, who] = x
        return taps

    def _run_head(self, who, view):
        taps = self.runs[who].head(self.model.weights, self.streams[view, who], self.group, view == "op")
        if who == "ours" and view == "accumulated":
            # the forward as it is used, one program: its logits stand for those that went layer by layer
            taps["output"] = whole_logits(self.model, self.tokens, self.replace, self.plan)
        return taps

    def _compare(self, name_of, run):
        """Every tap of one group, in one view after the other."""
        theirs, views = self.group, {op: {} for op in self.group}
        for view in VIEWS:
            pick = lambda taps: {op: taps[op] for op in theirs}
            ours = pick(run("ours", view))
            noise = [_errors(pick(run(v.name, view)), ours) for v in VARIANTS]
            with jax.enable_x64(True):
                truth = pick(run("truth", view))
                for op, x in truth.items():
                    if x.dtype != jnp.float64:
                        raise ValueError(
                            f"{name_of(op)}: the truth is {x.dtype}, not float64: a function on trial must return the "
                            "dtype that it is given (x.astype(...), at_least_float32)"
                        )
                our_error, their_error = _errors(ours, truth), _errors(theirs, truth)
            for op, direct in _direct(ours, theirs).items():
                views[op][view] = direct, [errors[op] for errors in noise], our_error[op], their_error[op]
            if view == "accumulated" and "output" in theirs:
                self.output = _output(*(np.asarray(x["output"])[self.valid] for x in (ours, theirs, truth)))
        own = {"the tokens", *theirs} | ({"the layer's input", "the last layer's output"} if self.own_layer else set())
        for op in theirs:
            untapped = tuple(read for read in (OPS | OUTER_OPS)[op][1] if read not in own)
            self.found.append(Found.of(name_of(op), views[op], self.valid, self.own_layer, untapped))


@jax.jit
def _errors(x, y):
    return {op: relative_error(op, x[op], y[op]) for op in x}


@jax.jit
def _direct(ours, theirs):
    """{op: (relative error [B,T], largest absolute difference [B,T], cosine [B,T], largest entry's share [B,T])}."""

    def one(op, x, y):
        masked = op.endswith(".scores")
        x, y = (jnp.where(masked & jnp.isneginf(z), 0, at_least_float32(z)) for z in (x, y))
        axes = over(op, y)
        size = lambda z: jnp.sqrt(jnp.sum(z * z, axes))
        share = jnp.max(jnp.abs(y), axes) / jnp.maximum(size(y), jnp.finfo(y.dtype).tiny)
        cosine = jnp.sum(x * y, axes) / jnp.maximum(size(x) * size(y), jnp.finfo(y.dtype).tiny)
        return jnp.max(jnp.abs(x - y), axes), cosine, share, math.prod(y.shape[a] for a in axes)

    return {op: (relative_error(op, x, theirs[op]), *one(op, x, theirs[op])) for op, x in ours.items()}


def _cached_plan(valid):
    """Pieces of a cached run over right-padded rows: a prompt, then as many tokens at once, then two single ones."""
    B, T = valid.shape
    lengths = valid.sum(1).astype(np.int32)
    steps = 2
    middle = min(-(-(T - steps) // 2), lengths.min() - 1 - steps)
    prompt = max(T - steps - middle, middle)
    pieces = [(np.zeros(B, np.int32), prompt), (lengths - steps - middle, middle)]
    pieces += [(lengths - steps + i, 1) for i in range(steps)]
    return [(start, int(length)) for start, length in pieces]


def _padded(model, prompts):
    """(tokens [B,T] padded on the right, valid [B,T]) of whatever compare takes as prompts."""
    rows = prompt_rows(model, prompts)
    if not rows:
        raise ValueError("expected at least one prompt, found an empty list")
    valid = np.arange(max(map(len, rows))) < np.array([len(r) for r in rows])[:, None]
    tokens = np.zeros(valid.shape, np.int32)
    tokens[valid] = np.concatenate(rows)
    return tokens, valid


def _output(ours, meta, truth) -> Output:
    log_p, log_q = (jax.nn.log_softmax(np.asarray(x, np.float32), axis=-1) for x in (meta, ours))
    kl = np.asarray(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))
    (_, ours_first), (best, metas_first) = (map(np.asarray, jax.lax.top_k(x, 5)) for x in (ours, meta))
    differ = ours_first[:, 0] != metas_first[:, 0]
    overlap = (ours_first[:, :, None] == metas_first[:, None]).any(-1)
    return Output(
        allclose=bool(np.allclose(ours, meta, rtol=RTOL, atol=ATOL)),
        meta_allclose_to_truth=bool(np.allclose(meta, truth, rtol=RTOL, atol=ATOL)),
        positions=int(differ.size),
        argmax_equal=int((~differ).sum()),
        margins_where_different=tuple(float(m) for m in (best[:, 0] - best[:, 1])[differ]),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top5_overlap=float(np.mean(overlap)),
    )
