"""The weights, under Meta's names and in Meta's [out, in] layout."""

from typing import NamedTuple

import jax


class LayerWeights(NamedTuple):
    """One transformer block. Shapes: wq, wo [D,D]; wk, wv [K*H,D]; w1, w3 [F,D]; w2 [D,F]; norms [D]."""

    wq: jax.Array
    wk: jax.Array
    wv: jax.Array
    wo: jax.Array
    w1: jax.Array
    w2: jax.Array
    w3: jax.Array
    attention_norm: jax.Array
    ffn_norm: jax.Array

    def qkv(self, linear, x):
        """Queries [B,T,D], keys and values [B,T,K*H] of x [B,T,D]. linear: model.py's product of x with a weight."""
        return linear(x, self.wq), linear(x, self.wk), linear(x, self.wv)

    def gate_up(self, linear, x):
        """The two halves of SwiGLU, [B,T,F] each: w1 of x, and w3 of x."""
        return linear(x, self.w1), linear(x, self.w3)

    def attention_out(self, linear, x):
        return linear(x, self.wo)

    def down(self, linear, x):
        return linear(x, self.w2)


class XfmrWeights(NamedTuple):
    """The whole model: tok_embeddings, output [V,D] (one array where the two are equal), norm [D], layer_weights."""

    tok_embeddings: jax.Array
    norm: jax.Array
    output: jax.Array
    layer_weights: tuple[LayerWeights, ...]


# Meta's modules, in whose names the file lists them
MODULE = (
    {f: f"attention.{f}" for f in ("wq", "wk", "wv", "wo")}
    | {f: f"feed_forward.{f}" for f in ("w1", "w2", "w3")}
    | {f: f for f in ("attention_norm", "ffn_norm")}
)


def nbytes(weights) -> int:
    """Bytes of a pytree of arrays, each array counted once however often it occurs."""
    return sum(x.nbytes for x in {id(x): x for x in jax.tree.leaves(weights)}.values())


def take_layer(arrays: dict, i: int, kind=LayerWeights):
    """Layer i as a kind of LayerWeights, its arrays taken out of a dict by the names that they have in the file."""
    return kind(**{f: arrays.pop(f"layers.{i}.{MODULE[f]}.weight") for f in kind._fields})


def by_name(weights) -> dict[str, jax.Array]:
    """The arrays under the names and in the layout that they have in the file, whatever class holds them."""
    named = {"tok_embeddings": weights.tok_embeddings, "norm": weights.norm, "output": weights.output}
    for i, layer in enumerate(weights.layer_weights):
        named |= {f"layers.{i}.{name}": getattr(layer, f) for f, name in MODULE.items()}
    return {f"{name}.weight": x for name, x in named.items()}
