"""The notebooks run on another model, with other parameters than their own, as papermill's command line gives them."""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
RUNS = {  # the longest first
    "12_does_it_help": "-p live_tasks 2",
    "11_causes": "-p n_texts 3 -p n_tokens 8 -p n_layer_texts 2 -p from_layer 2",
    "07_samplers": "-p n_tokens 4",
    "01_weights": "-p text Hi",
    "04_entropy": "-p text 'A short text.' -p n_tokens 512",
    "05_cache": "-p positions '16 64' -p new_tokens 80",
    "06_generate": "-p dtype bfloat16 -p n_prompts 2 -p n_tokens 3",
    "09_faults": "-p live '[\"F04\"]' -p small_live F10 -p correct C01 -p text 'A short text.'",
}


def papermill(name, model, folder):
    command = [sys.executable, "-m", "papermill", NOTEBOOKS / f"{name}.ipynb", folder / f"{name}.ipynb", "-p", "model"]
    command += [model, *shlex.split(RUNS[name]), "--no-progress-bar", "--cwd", NOTEBOOKS]
    command += ["--start-timeout", "300"]  # on a busy machine a kernel was seen to need more than the default minute
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time here
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_checkpoint):
    """A random model without scaled RoPE whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("notebooks")
    model = tiny_checkpoint(texts=True, n_layers=4, use_scaled_rope=False)
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(papermill, name, model, folder) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_runs_with_other_parameters(runs, name):
    done = runs[name].result()
    assert done.returncode == 0, done.stderr[-3000:]
