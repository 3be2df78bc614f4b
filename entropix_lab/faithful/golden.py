"""Figures that the original's own code produced, kept in the tests/golden of a checkout (its README describes them)."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ..llama.config import LlamaConfig
from ..llama.weights import XfmrWeights, take_layer
from . import static

FOLDER = Path(__file__).parents[2] / "tests" / "golden"
CONFIG = LlamaConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=128, multiple_of=192, norm_eps=1e-5, rope_theta=5e5,
    use_scaled_rope=True,
)  # fmt: skip


@dataclass(frozen=True)
class RandomModel:
    config: LlamaConfig
    weights: XfmrWeights


def figures(name):
    """The arrays of tests/golden/name.npz. Raises FileNotFoundError where the package lies outside a checkout."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"{FOLDER} is not there: these figures are in the repository, not in the package")
    return np.load(FOLDER / f"{name}.npz")


def random_model(dtype="float32") -> RandomModel:
    """The one of model.npz."""
    z = figures("model")
    stored = {k.split(":")[1]: z[k] for k in z.files if k.startswith("w_bf16bits:")}
    w = {name: jnp.asarray(bits.view(jnp.bfloat16)).astype(dtype) for name, bits in stored.items()}
    outer = (w[f"{name}.weight"] for name in ("tok_embeddings", "norm", "output"))
    return RandomModel(CONFIG, XfmrWeights(*outer, (take_layer(w, 0), take_layer(w, 1))))


def logits(revision):
    """(tokens [B,T], prompt length, the original's logits [B,T,V] as it ran, Meta's) of the random model, float32."""
    z = figures("model")
    whole = lambda prompt, later: np.concatenate([z[f"{prompt}_prefill"], z[f"{later}_decode"]], 1)
    theirs = whole(f"{revision}_f32", f"{revision}_f32_gap1")
    return z["tokens"], int(z["n_prefill"]), theirs, whole("official_f32", "official_f32")


def decisions(revision):
    """32 pairs of (token, branch), the original's and those of ``static.PUBLISHED[revision]``, with its one key."""
    z = figures("sampler")
    for i in range(32):
        x, scores = (jnp.asarray(z[f"{revision}_{name}_f16"][i], jnp.float32) for name in ("logits", "scores"))
        d = static.PUBLISHED[revision]([z[f"{revision}_prev_token"][i]], x[None, None], scores[None])
        theirs = int(z[f"{revision}_tokens"][i, 0]), int(z[f"{revision}_branch"][i])
        yield theirs, (int(d.token[0]), d.branch)
