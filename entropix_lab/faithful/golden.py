"""Figures that the original's own code produced, kept in the tests/golden of a checkout (its README describes them)."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from ..llama.config import LlamaConfig
from ..llama.weights import MODULE, LayerWeights, XfmrWeights

FOLDER = Path(__file__).parents[2] / "tests" / "golden"
CONFIG = LlamaConfig(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=128, multiple_of=192, norm_eps=1e-5, rope_theta=5e5,
    use_scaled_rope=True,
)  # fmt: skip


def figures(name):
    """The arrays of tests/golden/name.npz. Raises FileNotFoundError where the package lies outside a checkout."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"{FOLDER} is not there: these figures are in the repository, not in the package")
    return np.load(FOLDER / f"{name}.npz")


def random_model(dtype="float32"):
    """config and weights of the random model of model.npz."""
    z = figures("model")
    stored = {k.split(":")[1]: z[k] for k in z.files if k.startswith("w_bf16bits:")}
    w = {name: jnp.asarray(bits.view(jnp.bfloat16)).astype(dtype) for name, bits in stored.items()}
    layer = lambda i: LayerWeights(**{f: w[f"layers.{i}.{MODULE[f]}.weight"] for f in LayerWeights._fields})
    outer = (w[f"{name}.weight"] for name in ("tok_embeddings", "norm", "output"))
    return SimpleNamespace(weights=XfmrWeights(*outer, (layer(0), layer(1))), config=CONFIG)
