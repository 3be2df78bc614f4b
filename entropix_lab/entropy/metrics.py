"""How a model hesitates: entropy and varentropy of its next token, of its attention, and of its layers.

Everything is in nats and float32, and under jit: what a caller does not use of these reductions costs nothing.
"""

import jax
import jax.numpy as jnp

from ..llama.model import HIGHEST, head, no_tap
from ..sampling.draw import likeliest

ALTERNATIVES, WORDS, SOURCES = 10, 5, 8  # kept of a prediction, of a layer's, and of the slots that a head attends to


def entropy_varentropy(logits):
    """Entropy and varentropy of softmax(logits) along the last axis: [...,V] -> ([...], [...]), nats and nats^2.

    H = E[-log p] is the mean of the surprise and V = E[(-log p - H)^2] its variance (Fradelizi, Madiman and Wang 2016).
    float32 whatever the logits' dtype: in bfloat16 H is off by up to 0.3 bit at Llama's vocabulary. A logit of -inf
    is a token that cannot come and adds nothing; a row of -inf alone is NaN. Divide by ln 2 (V by its square) for bits.
    """
    z = jnp.asarray(logits).astype(jnp.float32)
    # sums of exp(z) around the largest logit: without log(p) there is no 0 * inf, and no normalised p to round
    z = z - jnp.max(z, -1, keepdims=True)
    e = jnp.exp(z)
    z = jnp.where(e > 0, z, 0)
    total = jnp.sum(e, -1)
    mean = jnp.sum(e * z, -1) / total
    return jnp.log(total) - mean, jnp.sum(e * (z - mean[..., None]) ** 2, -1) / total


def chosen_metrics(logits, tokens):
    """What the model thought of the tokens [...] that were chosen, from its logits [...,V] (no temperature, no filter).

    Returns a dict of arrays [...]: "surprisal" -log p(token) in nats, "probability" of the token, "rank" (0 is the
    likeliest; of equal ones the lowest id), and "top_probability", that of the likeliest token. The perplexity of a
    text is exp(mean surprisal).
    """
    z = jnp.asarray(logits).astype(jnp.float32)
    log_total = jax.nn.logsumexp(z, -1)
    chosen = jnp.take_along_axis(z, tokens[..., None], -1)
    before = jnp.arange(z.shape[-1]) < tokens[..., None]
    return {
        "surprisal": log_total - chosen[..., 0],
        "probability": jnp.exp(chosen[..., 0] - log_total),
        "rank": jnp.sum((z > chosen) | ((z == chosen) & before), -1, dtype=jnp.int32),
        "top_probability": jnp.exp(jnp.max(z, -1) - log_total),
    }


def alternatives(logits):
    """The likeliest tokens of logits [...,V], largest first, as a dict: "alternatives" ids [...,10] int32, and
    "alternative_probabilities" under the model (no temperature, no filter). Fewer where V is below 10."""
    best, ids = _likeliest(jnp.asarray(logits).astype(jnp.float32), ALTERNATIVES)
    return {"alternatives": ids, "alternative_probabilities": best}


def _likeliest(logits, k):
    """Probabilities and ids of the k largest of logits [...,V]; the search wants two axes, or XLA sorts."""
    best, ids = likeliest(logits.reshape(-1, logits.shape[-1]), k)
    best, ids = (x.reshape(*logits.shape[:-1], -1) for x in (best, ids))
    return jnp.exp(best - jax.nn.logsumexp(logits, -1, keepdims=True)), ids


def collector(last=None, attention=False):
    """(found, tap) for ``transformer``: the tap changes nothing and keeps small reductions of every layer in found.

    ``attention_metrics(found)`` and ``lens_metrics(weights, config, found, tokens)`` turn them into arrays, of all T
    positions or only of the one at index last [B] of each row. attention=True keeps of each head its largest sources.
    """
    found = {"stream": []}
    of_last = lambda x: jnp.take_along_axis(x, last.reshape(-1, *[1] * (x.ndim - 1)), axis=-2)
    pick = of_last if last is not None else lambda x: x

    def tap(name, x):
        if name.endswith("attention.scores"):
            scores = pick(x).astype(jnp.float32)
            for metric, value in (_reductions(scores) | (_sources(scores) if attention else {})).items():
                found.setdefault(metric, []).append(value)
        elif name.startswith("layers.") and name.count(".") == 1:
            found["stream"].append(pick(x))
        return x

    return found, tap


def attention_metrics(found):
    """The attention of every layer and head from what a collector found, as a dict of float32 arrays.

    Over live slots only, so that neither the size of the cache nor padding moves them. Of each head [B,T,L,N]:
    attention_entropy     of the head's probabilities, nats; between 0 and ln(live slots), see Trace.live
    attention_varentropy  the variance of its surprise, nats^2. The original's "attention varentropy" is something
                          else, the variance over heads of their entropies: attention_entropy.var(-1) in bits^2
    attention_rest        the entropy without slot 0, renormalised: trained Llamas park attention that they do not need
                          on the first token, the "sink". 0 at position 0, where nothing remains
    attention_sink        the probability of slot 0
    Of each layer [B,T,L]:
    head_disagreement     the total variation distance of a head's probabilities from the mean of all heads, averaged
                          over heads: 0 when all agree, below 1. The original calls 2/S of it "agreement", S the size
                          of the cache, though it grows as heads disagree
    score_magnitude       mean |score| over heads and live slots, before the softmax: the original's "interaction
                          strength", which counts the zeros of empty slots. A shift of all scores of a head moves it,
                          and changes no probability
    And where the collector kept them, [B,T,L,N,8], the largest first:
    attention_sources     the slots that the head attends to most
    attention_weights     their probabilities; 0 beyond the live slots, where there are fewer than 8
    """
    return {name: jnp.stack(layers, 2) for name, layers in found.items() if name != "stream"}


def _reductions(scores):
    """One layer's scores [B,K,G,T,S], -inf where a slot is not live -> the metrics above without their axis of layers.

    Written for XLA on a CPU, where this is most of a trace's cost: the softmax is the forward's own and is not computed
    twice, log p = z - log(total) needs no second exponential, and sums are products or sums over the last axis.
    """
    p = jax.nn.softmax(scores, -1)
    z = jnp.where(p > 0, scores - jnp.max(scores, -1, keepdims=True), 0)
    log_total = -jnp.log(jnp.max(p, -1))
    mean = jnp.einsum("BKGTS,BKGTS->BKGT", p, z, precision=HIGHEST)
    varentropy = jnp.einsum("BKGTS,BKGTS->BKGT", p * z, z, precision=HIGHEST) - mean**2
    # without slot 0: where it is the largest, as sinks are, its z is 0 and nothing cancels
    sink, rest = p[..., 0], jnp.sum(p[..., 1:], -1)
    some = jnp.maximum(rest, jnp.finfo(jnp.float32).tiny)
    without = jnp.where(rest > 0, log_total + jnp.log(some) - (mean - sink * z[..., 0]) / some, 0)

    B, K, G, T, _ = p.shape
    of_heads = jnp.full((K, G), 1 / (K * G), p.dtype)
    average = jnp.einsum("BKGTS,KG->BTS", p, of_heads, precision=HIGHEST)
    distances = jnp.sum(jnp.abs(p - average[:, None, None]), -1) / 2
    live = scores[:, 0, 0] > -jnp.inf
    magnitudes = jnp.sum(jnp.where(live[:, None, None], jnp.abs(scores), 0), -1)
    by_head = lambda x: jnp.moveaxis(x.reshape(B, K * G, T), 1, 2)
    return {
        "attention_entropy": by_head(log_total - mean),
        "attention_varentropy": by_head(jnp.maximum(varentropy, 0)),
        "attention_rest": by_head(without),
        "attention_sink": by_head(sink),
        "head_disagreement": jnp.mean(distances, (1, 2)),
        "score_magnitude": jnp.mean(magnitudes, (1, 2)) / jnp.sum(live, -1),
    }


def _sources(scores):
    """One layer's scores [B,K,G,T,S] -> the largest sources of each head [B,T,N,8] and their probabilities."""
    B, K, G, T, _ = scores.shape
    by_head = lambda x: jnp.moveaxis(x.reshape(B, K * G, T, -1), 1, 2)
    weights, slots = _likeliest(scores, SOURCES)
    return {"attention_sources": by_head(slots), "attention_weights": by_head(weights)}


def lens_metrics(weights, config, found, tokens):
    """The logit lens: the next token as it would be predicted if the stream after each layer were the last.

    tokens [B,T] are those that came. Returns a dict: "lens_entropy" nats [B,T,L], "lens_tokens" ids of the five
    likeliest [B,T,L,5] and their "lens_probabilities", "lens_rank" [B,T,L] of the token that came.

    The head (final norm and output matrix) is applied to every layer's residual stream (nostalgebraist 2020), which
    costs as many heads as there are layers. All layers of one position at a time: the output matrix is read once a
    position, and the logits of a long text are never held at once.
    """

    def of_position(at):
        stream, token = at  # [B,L,D], [B]
        logits = head(weights, config, stream, no_tap).astype(jnp.float32)
        best, ids = _likeliest(logits, WORDS)
        rank = chosen_metrics(logits, jnp.broadcast_to(token[:, None], logits.shape[:2]))["rank"]
        entropy = entropy_varentropy(logits)[0]
        return {"lens_entropy": entropy, "lens_tokens": ids, "lens_probabilities": best, "lens_rank": rank}

    streams = jnp.stack(found["stream"], 2)  # [B,T,L,D]
    found = jax.lax.map(of_position, (jnp.moveaxis(streams, 1, 0), jnp.moveaxis(tokens, 1, 0)))
    return {name: jnp.moveaxis(x, 0, 1) for name, x in found.items()}


def trace_metrics(weights, config, logits, tokens, found, lens):
    """All that a Trace keeps of the tokens [B,T] that came after logits [B,T,V], [B,T,...] by name; lens: that too."""
    entropy, varentropy = entropy_varentropy(logits)
    metrics = {"entropy": entropy, "varentropy": varentropy} | chosen_metrics(logits, tokens) | alternatives(logits)
    metrics |= attention_metrics(found)
    return metrics | (lens_metrics(weights, config, found, tokens) if lens else {})
