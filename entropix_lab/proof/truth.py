"""The truth: Llama's forward in NumPy float64, written from the formulas. No compiler has a part in it.

One layer at a time, whole rows at once, with every tap. It knows nothing of model.py: no cache, no replaced function,
no XLA. Weights are widened a few million entries at a time, so that a large layer needs no float64 copy.
"""

import numpy as np

ENTRIES = 1 << 22  # of a matrix that are widened at once


def wide(x) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def linear(x, w):
    """x [...,in] times w [out,in], transposed -> [...,out]."""
    w, columns = np.asarray(w), x.reshape(-1, x.shape[-1]).T
    step = max(1, ENTRIES // w.shape[1])
    parts = [wide(w[i : i + step]) @ columns for i in range(0, w.shape[0], step)]
    return np.concatenate(parts).T.reshape(*x.shape[:-1], -1)


def rms_norm(x, gain, eps):
    """x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich 2019)."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * wide(gain)


def angles(config, T):
    """The rotation of pair j at position p, [T,H/2]: p * theta^(-2j/H), slow ones stretched where Llama 3.1 says so."""
    H = config.head_dim
    turns = config.rope_theta ** (-2.0 * np.arange(H // 2) / H)
    if config.use_scaled_rope:
        # in the old context: full speed from high (4) turns on, 1/factor of it below low (1), a straight line between
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        whole = np.clip((config.rope_old_context_len * turns / (2 * np.pi) - low) / (high - low), 0, 1)
        turns = turns * (whole + (1 - whole) / config.rope_scaling_factor)
    return np.outer(np.arange(T), turns)


def rotate(x, angle):
    """Each pair (x[2j], x[2j+1]) of x [B,T,heads,H] turned by its angle [T,H/2], as one complex number."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turned = pairs * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def softmax(scores):
    with np.errstate(invalid="ignore"):  # a row of -inf alone has none
        e = np.exp(scores - scores.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)


def silu(x):
    return x * (0.5 + 0.5 * np.tanh(0.5 * x))  # x times the logistic function


def layer(w, config, x, theirs=None):
    """One block on the stream x [B,T,D] -> (the stream after it, {op: tap}). In the last rows of x every op reads
    theirs {op: tap}, where there is one, in place of what was computed."""
    (B, T, _), N, K, H = x.shape, config.n_heads, config.n_kv_heads, config.head_dim
    taps, theirs = {}, theirs or {}

    def tap(op, value):
        taps[op] = value
        return _last_rows(value, theirs.get(op))

    h = tap("attention_norm", rms_norm(x, w.attention_norm, config.norm_eps))
    q = tap("attention.wq", linear(h, w.wq)).reshape(B, T, N, H)
    k = tap("attention.wk", linear(h, w.wk)).reshape(B, T, K, H)
    v = tap("attention.wv", linear(h, w.wv)).reshape(B, T, K, H)
    q = tap("attention.xq_rope", rotate(q, angles(config, T)))
    k = tap("attention.xk_rope", rotate(k, angles(config, T)))

    of_query = np.arange(N) // (N // K)  # the key/value head that each query head reads
    q, k, v = (np.moveaxis(z, 1, 2) for z in (q, k[:, :, of_query], v[:, :, of_query]))  # [B,N,T,H]
    future = np.triu(np.ones((T, T), bool), 1)
    scores = tap("attention.scores", np.where(future, -np.inf, q @ np.swapaxes(k, -1, -2) / np.sqrt(H)))
    probs = tap("attention.probs", softmax(scores))
    out = np.moveaxis(probs @ v, 1, 2).reshape(B, T, N * H)
    x = tap("h_attn", x + tap("attention.wo", linear(out, w.wo)))

    h = tap("ffn_norm", rms_norm(x, w.ffn_norm, config.norm_eps))
    gate, up = tap("feed_forward.w1", linear(h, w.w1)), tap("feed_forward.w3", linear(h, w.w3))
    x = x + tap("feed_forward.w2", linear(silu(gate) * up, w.w2))
    return tap("", x), taps


def head(weights, config, x, theirs=None):
    """The final norm and the logits of the stream x [B,T,D] as taps."""
    norm = rms_norm(x, weights.norm, config.norm_eps)
    return {"norm": norm, "output": linear(_last_rows(norm, (theirs or {}).get("norm")), weights.output)}


def _last_rows(value, theirs):
    if theirs is None:
        return value
    first = len(value) - len(theirs)
    return np.concatenate([value[:first], wide(theirs).reshape(-1, *value.shape[1:])])


def forward(weights, config, tokens):
    """Logits [B,T,V] in float64 of tokens [B,T]."""
    x = wide(weights.tok_embeddings[np.asarray(tokens)])
    for w in weights.layer_weights:
        x, _ = layer(w, config, x)
    return head(weights, config, x)["output"]
