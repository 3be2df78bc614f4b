import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix_lab.compiler import EXACT
from entropix_lab.llama.model import KVCache, xfmr_with_taps


@pytest.fixture(scope="session")
def our_taps():
    """Our taps of one pass over tokens [B,T] as one compiled program, without excess precision, in their order."""

    def taps_of(model, tokens):
        cache = KVCache.new(model.config, *tokens.shape, model.dtype)
        run = jax.jit(xfmr_with_taps, static_argnames="config", compiler_options=EXACT)
        taps = run(model.weights, model.config, jnp.asarray(tokens), 0, cache)[2]
        return {name: np.asarray(x) for name, x in taps.items()}

    return taps_of
