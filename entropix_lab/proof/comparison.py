"""One comparison at work: it takes the other implementation's taps as they come and sets ours beside them.

Layer by layer, in three views, beside the truth and the noise of correct variants; and the forward as it is used beside
its own layers run one by one.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu_weights import unfused
from ..llama.model import at_least_float32
from ..llama.sharding import SplitLayerWeights, gathered
from ..llama.weights import LayerWeights
from .limits import Found, Noise, measured
from .measure import Samples, direct_of, errors, logits_of, low_precision, other_tokens, over, ratios
from .passes import INNOCENT, Pass, Truth, by_token, whole_taps
from .report import VIEWS, View
from .taps import OPS, OUTER_OPS, full_name, tap_shape
from .variants import AS_IT_IS, VARIANTS

# What the forward as it is used shows of its insides: the keys and values that it caches, and the stream.
SHOWN = ("attention.xk_rope", "attention.wv", "")


class Judged(NamedTuple):
    """A group of taps in one view, by the runs that are not on trial, {op: relative errors [B,T]}: of each variant from
    the run as it is, and of that run from the truth. logits [n,V] of the run as it is and of the variants, where the
    group has them."""

    dtypes: dict
    noise: tuple[dict, ...]
    plain: dict
    logits: list


class Comparison:
    """Takes the other implementation's taps one by one, in the order of execution, and compares layer by layer."""

    def __init__(self, model, tokens, valid, mode, programs, judged=None):
        """judged: a dict that keeps what the runs that are not on trial gave, for a comparison by other programs of the
        same model, tokens, mode and reference."""
        self.model, self.tokens, self.valid = model, tokens, valid
        self.judged, of = {} if judged is None else judged, (model.config, model.dtype, mode, tokens.tobytes())
        if self.judged.setdefault("of", of) != of:
            raise ValueError("judged: expected the runs of this model, mode and prompts, found others: pass a new dict")
        self.samples = Samples(tokens, valid)
        self.found, self.output, self.note, self.layer, self.group = [], None, "", 0, {}
        self.groups = 0  # of taps that were compared, a layer's or what lies outside the layers
        self.computed = False  # whether a value was taken that is no mere embedding
        self.own_layer = True  # whether the local view's next input is the other's own
        plan = cached_plan(valid) if mode == "cached" else None
        run = lambda variant=AS_IT_IS, **options: Pass(model.config, tokens.shape, variant, plan=plan, **options)
        self.truth, self.runs = Truth(model.config), {"ours": run(programs=programs, stranger=True)}
        self.runs |= {v.name: run(v) for v in VARIANTS}
        # what is on trial must not be its own judge; where nothing is, ours is the run as it is
        as_loaded = {type(w) for w in model.weights.layer_weights} <= {LayerWeights, SplitLayerWeights}
        ordinary = programs is INNOCENT and as_loaded
        self.plain = "ours" if ordinary else "plain"
        self.runs |= {} if ordinary else {"plain": run()}
        self.streams = {}  # (view, who) -> the stream that enters the next layer
        self.beside = ThreadPoolExecutor(1)  # the truth, while the other runs dispatch their programs
        # without the stranger that the layers of ours have beside them: what is wrong with one row alone shows there
        with self._stating("whole"):
            self.whole, self.whole_cache = whole_taps(model, tokens, programs, plan)

    def take(self, name, value):
        """value: an array, or None where the other implementation does not have this tap."""
        prefix = f"layers.{self.layer}."
        if value is not None:
            value = jnp.asarray(self._checked(name, value))
            if not self.valid.all():  # what their padding holds may be anything, and 0 * NaN is NaN
                value = jnp.where(np.expand_dims(self.valid, over(name, value)), value, 0)
            self.group[(name + ".").removeprefix(prefix).removesuffix(".")] = value
        if name == "tok_embeddings":
            self._embeddings()
        elif name + "." == prefix:
            w = gathered(self._weights("truth"))
            found = self.beside.submit(self.truth.layer, w, self.truth_streams, self.group)
            truth = lambda: {view: taps for view, (_, taps) in found.result().items()}
            self._compare(lambda op: full_name(self.layer, op), self._run_layer, truth, self.truth_streams["op"])
            self.truth_streams = {view: x for view, (x, _) in found.result().items()}
            self._restart_from("")
            self.layer += 1
        elif name == "output":
            small = self.model.weights._replace(tok_embeddings=None, layer_weights=())
            found = self.beside.submit(self.truth.head, gathered(small), self.truth_streams, self.group)
            self._compare(lambda op: op, self._run_head, found.result, self.truth_streams["op"])
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
        # of numbers the first that were computed speak: one operation in bfloat16 further on is for the report to name
        computed = not self.computed and name != "tok_embeddings"
        self.computed |= computed
        if self.model.dtype == "float32" and (low := low_precision(value, computed)):
            raise ValueError(
                f"{name}: the model is float32, this tap holds {low}: run the other implementation in float32, or load "
                'the model with dtype="bfloat16"'
            )
        return value

    def _embeddings(self):
        x = gathered(self.model.weights.tok_embeddings[self.tokens])
        self.streams = {(view, who): x for view in VIEWS for who in self.runs}
        self.truth_streams = {view: np.asarray(x).astype(np.float64) for view in VIEWS}
        truth = {view: {"tok_embeddings": x} for view, x in self.truth_streams.items()}
        self._compare(lambda op: op, lambda who, view: {"tok_embeddings": self.streams[view, who]}, lambda: truth)
        if "tok_embeddings" in self.group:
            self.note = other_tokens(self.model, self.tokens, self.valid, self.group["tok_embeddings"])
        self._restart_from("tok_embeddings")

    def _restart_from(self, op):
        """Errors do not travel in the local view: the next layer's input is what the other model handed on."""
        self.own_layer = op in self.group
        if self.own_layer:
            for who in self.runs:
                x = self.group[op].astype(self.streams["local", who].dtype)
                self.streams["local", who] = self.streams["op", who] = x
            self.truth_streams["local"] = self.truth_streams["op"] = np.asarray(self.group[op], np.float64)

    def _weights(self, who):
        w = self.model.weights.layer_weights[self.layer]
        return w if who == "ours" else unfused(w)  # a class of weights may be on trial too

    def _run_layer(self, who, view):
        with self._stating(who):
            x, taps = self.runs[who].layer(self._weights(who), self.streams[view, who], self.group, view == "op")
        self.streams[view, who] = x
        return taps

    @contextlib.contextmanager
    def _stating(self, who):
        """Errors of what is on trial, in words."""
        try:
            yield
        except Exception as error:
            if self.plain == "ours":
                raise
            raise ValueError(
                f"with functions of model.py replaced, {who} does not run: a function on trial takes what the one of "
                f"model.py takes and returns the dtype that it is given ({type(error).__name__}: {error})"
            ) from error

    def _run_head(self, who, view):
        with self._stating(who):
            taps = self.runs[who].head(self.model.weights, self.streams[view, who], self.group, view == "op")
        if who == "ours" and view == "accumulated":
            # the forward as it is used, one program: its logits stand for those that went layer by layer
            taps["output"] = self.whole["output"]
        return taps

    def _compare(self, name_of, run, truths, op_input=None):
        """Every tap of one group, in one view after the other. truths() waits for {view: taps}; op_input: what the
        group reads."""
        theirs, views, noise = self.group, {op: {} for op in self.group}, {op: {} for op in self.group}
        pick = lambda taps: {op: taps[op] for op in theirs}

        @cache
        def true(view):
            with jax.enable_x64(True):
                return jax.device_put(pick(truths()[view]))

        for view in VIEWS:
            ours, key, plain = pick(run("ours", view)), (view, self.groups), None
            known = self.judged.get(key)
            if known is None or known.plain is None or not theirs.keys() <= known.dtypes.keys():
                plain = ours if self.plain == "ours" else pick(run("plain", view))
                known = self._judge(view, plain, lambda who: pick(run(who, view)), true, known)  # noqa: B023
            self.judged[key], theirs_off = known, _off(self.group, true(view))
            ours_off = known.plain if plain is ours else _off(ours, true(view))
            for op, x in ours.items():
                if x.dtype != known.dtypes[op]:
                    raise ValueError(
                        f"{name_of(op)}: ours is {x.dtype}, expected {known.dtypes[op]}: a function on trial must "
                        "return the dtype that it is given (x.astype(...), at_least_float32)"
                    )
            direct = direct_of(ours, theirs)
            of, half_ulp = self.samples.of, float(jnp.finfo(self.model.dtype).eps) / 2
            for op in theirs:
                variants = [amount[op] for amount in known.noise]
                off = ours_off[op], theirs_off[op], known.plain[op]
                noise[op][view] = Noise(tuple(map(of, variants)), *map(of, off))
                least = np.max([theirs_off[op], *variants], axis=0)
                further = ratios(self.samples, ours_off[op], least, direct[op].share * half_ulp)
                views[op][view] = View(of(direct[op].error), error_ratio=further)
            if view == "accumulated":
                accumulated = direct
            if known.logits:
                logits = [np.asarray(taps["output"])[self.valid] for taps in (ours, theirs, true(view))]
                self.output = logits_of(*logits, known.logits[0], known.logits[1:])
        self.groups += 1
        whole, wide = self._whole_view(), self._wide(op_input, true("op"))
        own = {"the tokens", *theirs} | ({"the layer's input", "the last layer's output"} if self.own_layer else set())
        gaps = False
        for op in truths()["op"]:  # all of the group's, in their order
            if op not in theirs:
                gaps = True
                continue
            missing = tuple(read for read in (OPS | OUTER_OPS)[op][1] if read not in own)
            direct, alone = accumulated[op], View(whole[op]) if op in whole else None
            row = measured(name_of(op), views[op], noise[op], direct, self.valid, self.own_layer, missing, alone)
            share = float(np.max(direct.share[self.valid]))
            self.found.append(Found(row, noise[op], direct.size, share, gaps, wide.get(op)))

    def _judge(self, view, plain, taps_of, true, known):
        """The Judged of a group in one view. plain: taps of the run as it is; taps_of(name): those of a variant;
        true(view): those of the truth; known: a Judged of which only the noise is known, or None."""
        pick, noise = lambda taps: np.asarray(taps["output"])[self.valid], []
        dtypes, off = {op: x.dtype for op, x in plain.items()}, _off(plain, true(view))
        if known is not None and known.plain is None and plain.keys() <= known.dtypes.keys():
            return known._replace(dtypes=dtypes, plain=off)
        logits = [pick(plain)] if view == "accumulated" and "output" in plain else []
        for v in VARIANTS:  # one at a time, for their memory
            other = taps_of(v.name)
            noise.append(errors(other, plain))
            if logits:
                logits.append(pick(other))
        return Judged(dtypes, tuple(noise), off, logits)

    def _whole_view(self):
        """{op: (median, worst)} of the forward as it is used beside its layers run one by one: every layer from the
        stream that the former hands to it."""
        if "tok_embeddings" in self.group:
            mine = {"tok_embeddings": self.streams["accumulated", "ours"]}
            whole = {"tok_embeddings": self.whole["tok_embeddings"]}
        elif "" in self.group:
            before = self.whole[full_name(self.layer - 1, "") if self.layer else "tok_embeddings"]
            run = self.runs["ours"]
            after, _ = run.layer(self._weights("ours"), before, self.group, False)
            mine = dict(zip(SHOWN, (*by_token(*run.cache), after), strict=True))
            cached = by_token(self.whole_cache.k[self.layer], self.whole_cache.v[self.layer])
            whole = dict(zip(SHOWN, (*cached, self.whole[full_name(self.layer, "")]), strict=True))
        elif "output" in self.group:
            before = self.whole[full_name(self.layer - 1, "")]
            mine = self.runs["ours"].head(self.model.weights, before, self.group, False)
            whole = {op: self.whole[op] for op in mine}
        else:
            return {}
        return {op: self.samples.of(e) for op, e in errors(whole, mine).items()}

    def _wide(self, x, truth):
        """{op: (median, worst)} of a bfloat16 model in float32 beside the truth, both on the other's own inputs."""
        if self.model.dtype == "float32" or not self.group.keys() & {"", "output"}:
            return {}
        run, x = Pass(self.model.config, self.tokens.shape), jnp.asarray(x, jnp.float32)
        wide = lambda weights: jax.tree.map(at_least_float32, weights)
        if "" in self.group:
            _, taps = run.layer(wide(self._weights("plain")), x, self.group, True)
        else:
            small = self.model.weights._replace(tok_embeddings=None, layer_weights=())
            taps = run.head(wide(small), x, self.group, True)
        found = _off({op: taps[op] for op in self.group}, truth)
        return {op: self.samples.of(e) for op, e in found.items()}


def _off(taps, truth):
    """{op: errors of taps against the truth}."""
    with jax.enable_x64(True):
        return errors(taps, truth)


def cached_plan(valid):
    """Pieces of a cached run over right-padded rows: a prompt, then as many tokens at once, then two single ones."""
    B, T = valid.shape
    lengths = valid.sum(1).astype(np.int32)
    steps = 2
    middle = min(-(-(T - steps) // 2), lengths.min() - 1 - steps)
    prompt = max(T - steps - middle, middle)
    pieces = [(np.zeros(B, np.int32), prompt), (lengths - steps - middle, middle)]
    pieces += [(lengths - steps + i, 1) for i in range(steps)]
    return [(start, int(length)) for start, length in pieces]
