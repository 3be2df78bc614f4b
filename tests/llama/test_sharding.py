import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import entropix_lab as lab

SCRIPT = Path(__file__).with_name("on_mesh.py")
PASSED = [True, 3 + 15 * 2]


def start(*args):
    """on_mesh.py as a process that runs."""
    # Compiling is most of the time here. A virtual device that waits for the others keeps a thread: as many as there
    # are cores can be too few.
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "NPROC": "16"}
    command = [sys.executable, SCRIPT, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(next(line for line in out.splitlines() if line.startswith("{")))  # Gloo prints lines too


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint("bfloat16", shards=2, n_layers=2, n_heads=8, n_kv_heads=4)


def test_two_processes_are_one(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(folder, "float32", "dirichlet", 1, 2, 1, i, port) for i in range(2)]
    one, first, second = map(result, [start(folder, "float32", "dirichlet", 1, 1, 1), *both])
    assert first == second
    assert first["tokens"] == one["tokens"] and first["verdict"] == one["verdict"] == PASSED
    for found, want in zip(first["trace"] + first["causes"], one["trace"] + one["causes"], strict=True):
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    for kind, shares in one["heads"].items():
        np.testing.assert_allclose(first["heads"][kind], shares, atol=1e-6)
    assert abs(first["effect"] - one["effect"]) < 1e-5 < abs(one["effect"])
    assert 0.5 < first["held"] / one["held"] < 0.51  # half of the matrices and all norms


def test_sums_over_four_devices_are_rounded_once(folder):
    """In bfloat16 the comparison sees it where each device rounds its part of wo's and w2's sums; so are those of a
    product on trial that knows nothing of them."""
    found = result(start(folder, "bfloat16", "none", 1, 4, 4))
    assert found["verdict"] == found["on trial"] == PASSED
    assert 0 < abs(found["effect"]) < 1


def test_a_size_that_cannot_be_split():
    with pytest.raises(ValueError, match=r"mesh\(data=1, model=2\) needs 2 devices, found 1.*jax_num_cpu_devices"):
        lab.mesh(model=2)
    config = lab.LlamaConfig(96, 1, 6, 126, 96, 1e-5, 1e4, n_kv_heads=6)
    of = lambda n: type("Mesh", (), {"shape": {"model": n}})
    lab.sharding.check_divisible(config, of(3))
    with pytest.raises(
        ValueError, match=r"model=4 cannot split n_kv_heads 6, vocab_size 126 evenly: .* \[1, 2, 3, 6\]"
    ):
        lab.sharding.check_divisible(config, of(4))


@pytest.mark.parametrize("rank", [0, 1])
def test_metas_ranks_cut_the_weights_where_shard_dim_says(monkeypatch, rank):
    """Meta's own Transformer, made as one of two ranks; before they are cut its matrices count from 0."""
    from fairscale.nn.model_parallel import initialize, layers
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    counted = lambda *shape: torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    for module in (initialize, layers):
        monkeypatch.setattr(module, "get_model_parallel_world_size", lambda: 2)
        monkeypatch.setattr(module, "get_model_parallel_rank", lambda: rank)
    monkeypatch.setattr(torch, "empty", lambda *shape, **_: counted(*shape))  # of which a rank takes its part
    of_rank = Transformer(ModelArgs(**lab.demo.TINY, max_seq_len=8, max_batch_size=1)).state_dict()
    shapes = lab.checkpoint.tensor_shapes(lab.LlamaConfig.from_params(lab.demo.TINY))
    assert of_rank.keys() == shapes.keys()
    for name, shape in shapes.items():
        dim = lab.sharding.shard_dim(name)
        assert of_rank[name].shape == shape if dim is None else of_rank[name].equal(counted(*shape).chunk(2, dim)[rank])


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_each_place_on_a_mesh_reads_what_metas_rank_has(tiny_checkpoint, shards):
    """From either format and any number of shards, and no more of a file than that."""
    folder = tiny_checkpoint("bfloat16", shards=shards, n_layers=1, n_heads=8, n_kv_heads=4, tied=False)
    model = lab.load_model(folder, "bfloat16")
    theirs = lab.save_hugging_face(model, folder.with_name(f"hf{shards}"))
    for reader, where in ((lab.checkpoint.meta, folder), (lab.checkpoint.safetensors, theirs)):
        for tensor in reader.open_tensors(where, model.config):
            name, shape, dim = tensor.name, tensor.shape, lab.sharding.shard_dim(tensor.name)
            whole = np.asarray(lab.weights.by_name(model.weights)[name])
            for rank in range(4) if dim is not None else ():
                index = [slice(None)] * 2
                index[dim] = slice(rank * shape[dim] // 4, (rank + 1) * shape[dim] // 4)
                part = tensor.read(tuple(index))
                assert (part == whole[tuple(index)]).all() and part.size == whole.size // 4
