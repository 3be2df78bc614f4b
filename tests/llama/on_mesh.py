"""Run by test_sharding.py in processes of its own: what a model computes on a mesh of virtual devices, as JSON.

    python on_mesh.py FOLDER DTYPE SAMPLER DATA MODEL DEVICES [PROCESS PORT]

DEVICES are those of one process; with PROCESS (0 or 1) and PORT there are two processes.
"""

import json
import sys
import warnings

import jax
import jax.numpy as jnp

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3], [7, 7]]


def results(model, sampler):
    """The bytes held, what a comparison says and what a silent head does; the tokens of a sampler and what they came
    from, and causes; or ("none") what the comparison says with a product of two arguments on trial."""
    import entropix_lab as lab

    arrays = {id(x): x for x in jax.tree.leaves(model.weights)}.values()
    held = sum(shard.data.nbytes for x in arrays for shard in x.addressable_shards)
    report = lab.compare(model, model.path, PROMPTS[1])
    found = {"held": held, "verdict": [report.passed, len(report.rows)]}
    silent, rows = {"layers.1.attention.probs": lambda p: p.at[:, 1].set(0)}, [PROMPTS[0], PROMPTS[1][:3]]
    before, after = lab.sweep(model, rows, ({}, silent), keep=["layers.1"])
    found["effect"] = lab.effects(before, after)["entropy"][0]
    if sampler == "none":
        product = lambda x, w: jnp.einsum("...D,ND->...N", x, w, precision="highest")
        report = lab.compare(model, model.path, PROMPTS[1], replace={"linear": product})
        found["on trial"] = [report.passed, len(report.rows)]
    else:
        found["causes"] = [[r.logits.tolist(), r.kept["layers.1"].tolist()] for r in (*before, *after)]
        found["heads"] = {kind: x.tolist() for kind, x in lab.heads.kinds(model, 8, 2).items()}
        sampler = lab.samplers.dirichlet(128) if sampler == "dirichlet" else getattr(lab.samplers, sampler)()
        out = lab.generate(model, PROMPTS, 5, sampler, seed=range(4), stop=(), trace=True)
        found["tokens"] = [g.tokens.tolist() for g in out]
        found["trace"] = [[g.trace.entropy.tolist(), g.trace.attention_entropy.tolist()] for g in out]
    return found


if __name__ == "__main__":
    folder, dtype, sampler, data, along_model, devices, *process = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    if process:
        jax.distributed.initialize(f"127.0.0.1:{process[1]}", num_processes=2, process_id=int(process[0]))
    import entropix_lab as lab

    warnings.simplefilter("error")  # a donated cache that cannot be used is one
    warnings.filterwarnings("ignore", category=ResourceWarning)
    mesh = None if (data, along_model) == ("1", "1") else lab.mesh(int(data), int(along_model))
    print(json.dumps(results(lab.load_model(folder, dtype, mesh), sampler)))
