"""The original's own model and sampler functions, imported from a clone of github.com/xjdr-alt/entropix.

Two things that a current JAX does not have are stood in for, in the clone's modules alone: ``jnp.clip(a_min=,
a_max=)``, and the package chex, of which cceeb84 uses ``chex.dataclass``. Its rotation table lies in its main program:
here it is ``forward.table_in_jax``.
"""

import dataclasses
import importlib
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import forward, static

REVISIONS = ("cceeb84", "9d41be6")


class Original(NamedTuple):
    """The modules of a clone. Arguments and results are those of ``faithful.forward`` and ``faithful.static``."""

    revision: str
    modules: dict

    def teacher_forced(self, model, tokens, n_prompt, gap=0, max_seq_len=None):
        """As ``forward.teacher_forced``; the scores are of the last layer alone, [B,N,1,S]. Nothing is compiled."""
        c, (B, T) = model.config, tokens.shape
        slots = max_seq_len or T + gap
        params = self.modules["config"].ModelParams(
            c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, slots, c.rope_theta, c.use_scaled_rope
        )
        table = jax.lax.complex(*forward.table_in_jax(c, T + gap))
        cache = self.modules["kvcache"].KVCache.new(c.n_layers, B, slots, c.n_kv_heads, c.head_dim)
        mask = jnp.triu(jnp.full((n_prompt, n_prompt), -jnp.inf), 1)
        with jax.default_matmul_precision("highest"):
            xfmr, w = self.modules["model"].xfmr, self.weights(model)
            run = lambda ids, at, *more: xfmr(w, params, ids, at, table[at : at + ids.shape[1]], *more)[:3]
            prompt, cache, _ = run(jnp.asarray(tokens[:, :n_prompt]), 0, cache, mask)
            later = []
            for i in range(n_prompt, T):
                logits, cache, scores = run(jnp.asarray(tokens[:, i : i + 1]), i + gap, cache)
                later.append(logits[:, 0])
        return prompt, jnp.stack(later, 1), scores

    def weights(self, model):
        w, theirs = model.weights, self.modules["weights"]
        layers = [
            theirs.LayerWeights(**{f: getattr(x, f) for f in theirs.LayerWeights._fields}) for x in w.layer_weights
        ]
        return theirs.XfmrWeights(w.tok_embeddings, w.norm, w.output, layers)

    def measure(self, logits, scores) -> static.Metrics:
        """9d41be6 knows neither agreement nor interaction: 0."""
        m = self.modules["sampler"].calculate_metrics(logits, scores)
        names = "logits_entropy logits_varentropy attn_entropy attn_varentropy agreement".split()
        return static.Metrics(*(m.get(n, 0.0) for n in names), m.get("interaction_strength", jnp.zeros(1)))

    def token(self, tokens, logits, scores, key, clarifying=2564) -> int:
        """What its sampler says after the tokens [n] generated so far."""
        sampler = self.modules["sampler"]
        if self.revision == "9d41be6":
            return int(jax.jit(sampler.sample)(logits, scores, clarifying, key)[0, 0])
        config = sampler.SamplerConfig()
        return int(sampler.sample(jnp.asarray(tokens)[:, None], logits, scores, config, clarifying, key)[0, 0])


def load(repo) -> Original:
    """The Original of a clone that is checked out at one of REVISIONS. Its files and sys.modules stay as they are.

    Raises ValueError for a folder that is no such clone."""
    repo = Path(repo).expanduser()
    git = ["git", "-C", str(repo), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    revision = next((r for r in REVISIONS if head.startswith(r)), None)
    if revision is None or not (repo / "entropix" / "model.py").exists():
        wanted = f"a git clone of entropix at {' or '.join(REVISIONS)}"
        raise ValueError(f"{repo}: expected {wanted}, found {head[:7] or 'no git clone'}; git checkout {REVISIONS[1]}")
    ours = lambda name: name.split(".")[0] in ("entropix", "chex")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if ours(name)}
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, path := str(repo.resolve()))
    try:
        sys.modules["chex"] = types.SimpleNamespace(dataclass=dataclasses.dataclass)
        names = ("model", "sampler", "kvcache", "config", "weights")
        modules = {name: importlib.import_module(f"entropix.{name}") for name in names}
    finally:
        sys.path.remove(path)
        sys.dont_write_bytecode = writes
        for name in filter(ours, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(before)
    clip = lambda x, *args, a_min=None, a_max=None: jnp.clip(x, *(args or (a_min, a_max)))
    modules["sampler"].jnp = types.SimpleNamespace(**vars(jnp) | {"clip": clip})
    return Original(revision, modules)
