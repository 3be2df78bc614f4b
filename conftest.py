"""Shared by the tests and by `pytest --nbval notebooks/`: the environment, the demo model, tiny random checkpoints."""

import dataclasses
import os

# two threads that spin on two busy cores are slower than one; kernels of the notebooks inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import matplotlib
import pytest

import entropix_lab as lab
from entropix_lab.checkpoints.demo import DEMO_MODEL, demo_folder
from entropix_lab.checkpoints.write import TINY, write_random_checkpoint
from entropix_lab.tokenizer import SMOLLM2_SPECIAL, rank_lines

matplotlib.use("Agg")


def pytest_sessionstart(session):
    """Make the demo model before anything is compared: its progress must not end up in a notebook's output."""
    if not session.config.option.collectonly:
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            demo_folder()


@pytest.fixture(autouse=True, scope="module")
def programs(request):
    """A module that is marked in_haste compiles the same fusions to machine code that is less polished: most of its
    time goes into compiling programs that run once. Not for what is about the programs that users run.

    A process that keeps every program of a whole run was seen to crash in the compiler."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("in_haste") is not None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A factory of random checkpoints in Meta's format: (changes of TINY, options of the writer) -> folder.

    texts: with a tokenizer.model of SmolLM2's family, whose tokens are the bytes and what spells " ..."."""

    def make(dtype="float32", shards=1, tied=True, seed=0, texts=False, **params):
        folder, tokenizer = tmp_path_factory.mktemp("checkpoint") / "tiny", None
        if texts:
            tokens, first = [*(bytes([b]) for b in range(256)), b"..", b"...", b" ..."], len(SMOLLM2_SPECIAL)
            tokenizer = rank_lines({token: first + i for i, token in enumerate(tokens)})
            params["vocab_size"] = first + len(tokens)
        return write_random_checkpoint(folder, TINY | params, seed, dtype, shards, tied, tokenizer)

    return make


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(request, tiny_checkpoint):
    """A tiny random model in either dtype; tiny32 in float32 alone."""
    return lab.load_model(tiny_checkpoint(request.param, tied=False), request.param)


@pytest.fixture(scope="module")
def tiny32(tiny_checkpoint):
    return lab.load_model(tiny_checkpoint(tied=False))


@pytest.fixture(scope="session")
def demo():
    return lab.load_model(DEMO_MODEL)


@pytest.fixture(scope="session")
def few_layers(demo):
    """The demo model's tokenizer and first three layers: what is about texts compiles in a tenth of the time."""
    weights = demo.weights._replace(layer_weights=demo.weights.layer_weights[:3])
    return dataclasses.replace(demo, config=dataclasses.replace(demo.config, n_layers=3), weights=weights)


@pytest.fixture(scope="session")
def demo_reference(demo):
    return lab.load_reference(demo.path)
