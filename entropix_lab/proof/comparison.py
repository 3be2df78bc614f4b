"""One comparison at work: it takes the other implementation's taps as they come and sets ours beside them.

Layer by layer, in three views, beside the truth and the noise of correct variants; and the forward as it is used beside
its own layers run one by one.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu_weights import unfused
from ..llama.model import at_least_float32
from ..llama.sharding import SplitLayerWeights, gathered
from ..llama.weights import LayerWeights
from . import truth
from .limits import Found, Noise, measured
from .measure import Direct, Samples, direct_of, errors, logits_of, low_precision, other_tokens, over, ratios
from .passes import INNOCENT, Pass, by_token, cached_plan, whole_taps
from .pieces import of_views
from .report import VIEWS, View
from .taps import OPS, OUTER_OPS, checked, full_name, tap_shape
from .variants import AS_IT_IS, VARIANTS

# What the forward as it is used shows of its insides: the keys and values that it caches, and the stream.
SHOWN = ("attention.xk_rope", "attention.wv", "")
TOGETHER = 256  # tokens, up to which all views are rows of one batch: of more, the memory would be too much


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
        self.model, self.tokens, self.valid, self.B = model, tokens, valid, len(tokens)
        texts = tokens.shape, tokens.tobytes(), valid.tobytes()
        self.judged, of = {} if judged is None else judged, (model.config, model.dtype, id(model.weights), mode, texts)
        if self.judged.setdefault("of", of) != of:
            raise ValueError("judged: expected the runs of this model, mode and prompts, found others: pass a new dict")
        self.samples = Samples(tokens, valid)
        self.found, self.output, self.note, self.layer, self.group = [], None, "", 0, {}
        self.groups = 0  # of taps that were compared, a layer's or what lies outside the layers
        self.computed = False  # whether a value was taken that is no mere embedding
        self.own_layer = True  # whether the local view's next input is the other's own
        plan = cached_plan(valid) if mode == "cached" else None
        run = lambda variant=AS_IT_IS, **options: Pass(model.config, tokens.shape, variant, plan=plan, **options)
        self.parts = [VIEWS] if tokens.size <= TOGETHER else [(view,) for view in VIEWS]  # views that are one batch
        self.runs = {"ours": run(programs=programs, stranger=True)}
        self.runs |= {v.name: run(v) for v in VARIANTS}
        # what is on trial must not be its own judge; where nothing is, ours is the run as it is
        as_loaded = {type(w) for w in model.weights.layer_weights} <= {LayerWeights, SplitLayerWeights}
        ordinary = programs is INNOCENT and as_loaded
        self.plain = "ours" if ordinary else "plain"
        self.runs |= {} if ordinary else {"plain": run()}
        self.streams = {}  # (view, who) -> the stream [B,T,D] that enters the next layer
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
            w, config = gathered(self._weights("truth")), self.model.config
            of_layer = lambda x, read: truth.layer(w, config, x, read)
            self._compare(lambda op: full_name(self.layer, op), self._run_layer, of_layer)
            self._restart_from("")
            self.layer += 1
        elif name == "output":
            small = gathered(self.model.weights._replace(tok_embeddings=None, layer_weights=()))
            of_head = lambda x, read: (x, truth.head(small, self.model.config, x, read))
            self._compare(lambda op: op, self._run_head, of_head)
        else:
            return
        self.group = {}

    def _checked(self, name, value):
        value = checked(name, value, tap_shape(name, self.model.config, *self.tokens.shape))
        # a whole port in low precision is refused at its first computed tap; a later op of it is the report's to name
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
        self.streams |= {(view, "truth"): np.asarray(x).astype(np.float64) for view in VIEWS}
        run = lambda who, part: {"tok_embeddings": self._rows(who, part)}
        self._compare(lambda op: op, run, lambda x, read: (x, {"tok_embeddings": x}))
        if "tok_embeddings" in self.group:
            self.note = other_tokens(self.model, self.tokens, self.valid, self.group["tok_embeddings"])
        self._restart_from("tok_embeddings")

    def _restart_from(self, op):
        """Errors do not travel in the local view: the next layer's input is what the other model handed on."""
        self.own_layer = op in self.group
        for (view, who), x in self.streams.items() if self.own_layer else ():
            if view in ("local", "op"):
                given = self.group[op]
                self.streams[view, who] = np.asarray(given, np.float64) if who == "truth" else given.astype(x.dtype)
        self.streams["whole", "ours"] = self.whole[op or full_name(self.layer, "")]

    def _weights(self, who):
        w = self.model.weights.layer_weights[self.layer]
        return w if who == "ours" else unfused(w)  # a class of weights may be on trial too

    def _rows(self, who, views):
        """The streams of these views as the rows of one batch."""
        return np.concatenate([self.streams[view, who] for view in views])

    def _views(self, who, part):
        """(views, forced): what runs as one batch, and the rows in which every op reads theirs. With ours go the
        streams that the forward as it is used hands to its layers. Pass puts an unrelated row before the first view, so
        that a function which reads the row beside it is wrong there; where it reads round the end, in the last."""
        views = ("op", "whole", *part[:-1]) if who == "ours" and len(part) > 1 else part
        return views, np.repeat([view == "op" for view in views], self.B)

    def _run_layer(self, who, part):
        (views, forced), run = self._views(who, part), self.runs[who]
        with self._stating(who):
            x, taps = run.layer(self._weights(who), self._rows(who, views), self.group, forced)
        for view in views:
            self.streams[view, who] = of_views(x, self.B, views, (view,))
        if "whole" in views:
            cached = by_token(*of_views(run.cache, self.B, views, ("whole",)))
            self.alone = dict(zip(SHOWN, (*cached, self.streams["whole", who]), strict=True))
        return of_views(taps, self.B, views, part)

    @contextlib.contextmanager
    def _stating(self, who):
        """Errors of what is on trial, in words."""
        try:
            yield
        except Exception as error:
            if self.plain == "ours":
                raise
            raise ValueError(
                f"a replaced function fails in the run {who!r} ({type(error).__name__}: {error}): it must take the "
                "arguments of the function of model.py that it stands for, and return the dtype that it is given"
            ) from error

    def _run_head(self, who, part):
        views, forced = self._views(who, part)
        with self._stating(who):
            taps = self.runs[who].head(self.model.weights, self._rows(who, views), self.group, forced)
        if "whole" in views:
            self.alone = of_views(taps, self.B, views, ("whole",))
        taps = of_views(taps, self.B, views, part)
        if who == "ours" and "accumulated" in part:
            # the forward as it is used, one program: its logits stand for those that went layer by layer
            taps["by layer"] = taps["output"]
            taps["output"] = np.concatenate([self.whole["output"], taps["output"][self.B :]])
        return taps

    def _compare(self, name_of, run, true_of):
        """Every tap of one group, in all views. run(who, part): taps of a part of the views; true_of(streams, theirs):
        (the truth's streams, its taps)."""
        theirs, views, noise = self.group, {op: {} for op in self.group}, {op: {} for op in self.group}
        pick = lambda taps: {op: taps[op] for op in theirs}
        given = [(part, self._rows("truth", part), theirs if "op" in part else {}) for part in self.parts]
        found = self.beside.submit(lambda: {part: true_of(*streams_and_theirs) for part, *streams_and_theirs in given})

        true = lambda part: pick(found.result()[part][1])
        for part in self.parts:
            taps, key, plain = run("ours", part), (part, self.groups), None
            ours, by_layer = pick(taps), taps.get("by layer")
            known = self.judged.get(key)
            known = known if known and theirs.keys() <= known.dtypes.keys() else None
            if known is None or known.plain is None:
                plain = ours if self.plain == "ours" else pick(run("plain", part))
                if plain is ours and by_layer is not None and "output" in ours:  # as the logits of the variants
                    plain = ours | {"output": by_layer}
                known = self._judge(part, plain, lambda who: pick(run(who, part)), true, known)  # noqa: B023
            self.judged[key], theirs_off = known, errors(theirs, true(part))
            ours_off = known.plain if plain is ours else errors(ours, true(part))
            for op, x in ours.items():
                if x.dtype != known.dtypes[op]:
                    raise ValueError(
                        f"{name_of(op)}: ours is {x.dtype}, expected {known.dtypes[op]}: a function on trial must "
                        "return the dtype that it is given (x.astype(...), at_least_float32)"
                    )
            direct = direct_of(ours, theirs)
            of, half_ulp = self.samples.of, float(jnp.finfo(self.model.dtype).eps) / 2
            for i, view in enumerate(part):
                at = slice(i * self.B, (i + 1) * self.B)
                for op in theirs:
                    variants = [amount[op][at] for amount in known.noise]
                    off = ours_off[op][at], theirs_off[op][at], known.plain[op][at]
                    noise[op][view] = Noise(tuple(map(of, variants)), *map(of, off))
                    least = np.max([theirs_off[op][at], *variants], axis=0)
                    further = ratios(self.samples, off[0], least, direct[op].share[at] * half_ulp)
                    views[op][view] = View(of(direct[op].error[at]), error_ratio=further)
            if "accumulated" in part:
                accumulated = {op: Direct(*(x[: self.B] for x in d[:-1]), d.size) for op, d in direct.items()}
            if known.logits:
                logits = [self._logits(taps) for taps in (ours, theirs, true(part))]
                self.output = logits_of(*logits, known.logits[0], known.logits[1:])
        self.groups += 1
        whole, wide = self._whole_view(run), self._wide(true(self.parts[-1]))
        own = {"the tokens", *theirs} | ({"the layer's input", "the last layer's output"} if self.own_layer else set())
        gaps = False
        for op in found.result()[self.parts[-1]][1]:  # all of the group's, in their order
            if op not in theirs:
                gaps = True
                continue
            missing = tuple(read for read in (OPS | OUTER_OPS)[op][1] if read not in own)
            direct, alone = accumulated[op], View(whole[op]) if op in whole else None
            row = measured(name_of(op), views[op], noise[op], direct, self.valid, self.own_layer, missing, alone)
            share = float(np.max(direct.share[self.valid]))
            self.found.append(Found(row, noise[op], direct.size, share, gaps, wide.get(op)))
        for part, (x, _) in found.result().items():
            for i, view in enumerate(part):
                self.streams[view, "truth"] = x[i * self.B : (i + 1) * self.B]

    def _judge(self, part, plain, taps_of, true, known):
        """The Judged of a group in a part of the views. plain: taps of the run as it is; taps_of(name): those of a
        variant; true(part): those of the truth; known: a Judged of which only the noise is known, or None."""
        dtypes, off = {op: x.dtype for op, x in plain.items()}, errors(plain, true(part))
        if known is not None:
            return known._replace(dtypes=dtypes, plain=off)
        logits, noise = [self._logits(plain)] if "accumulated" in part and "output" in plain else [], []
        for v in VARIANTS:  # one at a time, for their memory
            other = taps_of(v.name)
            noise.append(errors(other, plain))
            if logits:
                logits.append(self._logits(other))
        return Judged(dtypes, tuple(noise), off, logits)

    def _logits(self, taps):
        """[n,V] of the positions that are compared, in the accumulated view."""
        return np.asarray(taps["output"])[: self.B][self.valid]

    def _whole_view(self, run):
        """{op: (median, worst)} of the forward as it is used beside its layers run one by one: every layer from the
        stream that the former hands to it."""
        if len(self.parts) > 1 and "tok_embeddings" not in self.group:
            run("ours", ("whole",))
        if "tok_embeddings" in self.group:
            mine = {"tok_embeddings": self.streams["accumulated", "ours"]}
            whole = {"tok_embeddings": self.whole["tok_embeddings"]}
        elif "" in self.group:
            mine, i = self.alone, self.layer
            cached = by_token(self.whole_cache.k[i], self.whole_cache.v[i])
            whole = dict(zip(SHOWN, (*cached, self.whole[full_name(i, "")]), strict=True))
        elif "output" in self.group:
            mine, whole = self.alone, {op: self.whole[op] for op in self.alone}
        else:
            return {}
        return {op: self.samples.of(e) for op, e in errors(whole, mine).items()}

    def _wide(self, true):
        """{op: (median, worst)} of a bfloat16 model in float32 beside the truth, whose last rows are those of the op
        view, both on the other's own inputs."""
        if self.model.dtype == "float32" or not self.group.keys() & {"", "output"}:
            return {}
        run, x = Pass(self.model.config, self.tokens.shape), jnp.asarray(self.streams["op", "truth"], jnp.float32)
        wide = lambda weights: jax.tree.map(at_least_float32, weights)
        if "" in self.group:
            _, taps = run.layer(wide(self._weights("plain")), x, self.group, True)
        else:
            small = self.model.weights._replace(tok_embeddings=None, layer_weights=())
            taps = run.head(wide(small), x, self.group, True)
        found = errors({op: taps[op] for op in self.group}, {op: x[-self.B :] for op, x in true.items()})
        return {op: self.samples.of(e) for op, e in found.items()}
