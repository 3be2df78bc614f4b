"""Which room may import which, and what an import brings along."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import entropix_lab as lab

PACKAGE = Path(lab.__file__).parent
MAY_IMPORT = {
    "llama": set(),
    "sampling": set(),
    "compiler": set(),
    "colours": set(),
    "verdict": set(),
    "cpu_weights": {"llama"},
    "files": {"llama"},
    "tokenizer": {"llama", "files"},
    "loaded_model": {"llama", "cpu_weights", "tokenizer"},
    "checkpoints": {"llama", "cpu_weights", "files", "tokenizer", "loaded_model", "compiler"},
    "entropy": {"llama", "sampling", "colours"},
    "generation": {"llama", "sampling", "entropy", "compiler"},
    "timing": {"llama", "sampling", "generation"},
    "evaluation": {"sampling", "entropy", "generation", "timing"},
    "proof": {"llama", "cpu_weights", "checkpoints", "generation", "compiler", "verdict"},
    "faithful": {"llama", "compiler"},
    "plots": {"sampling", "entropy", "evaluation", "proof", "colours"},
}


def imports(file):
    """The modules of this package that a file names in its imports, also inside functions, as tuples of names."""
    here = file.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level] + tuple((node.module or "").split(".") if node.module else ())
            for alias in node.names:
                named = (*base, alias.name)
                is_module = (PACKAGE.joinpath(*named).with_suffix(".py")).exists() or PACKAGE.joinpath(*named).is_dir()
                yield named if is_module else base
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "entropix_lab" for name in names), f"{file}: relative imports here"


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_run_one_way(file):
    room = file.relative_to(PACKAGE).with_suffix("").parts[0]
    others = {name[0] for name in imports(file)} - {room}
    assert others <= MAY_IMPORT[room], f"{room} may not import {sorted(others - MAY_IMPORT[room])}"


@pytest.mark.parametrize(("room", "allowed"), [("llama", {"jax", "numpy"}), ("sampling", {"jax"})])
def test_the_core_needs_jax_and_little_else(room, allowed):
    """Of third parties, also inside functions."""
    found = set()
    for file in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    assert found - set(sys.stdlib_module_names) == allowed


def test_nothing_runs_in_a_circle():
    module = lambda file: file.relative_to(PACKAGE).with_suffix("").parts
    graph = {module(f): set(imports(f)) for f in FILES if f.name != "__init__.py"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_what_decodes_is_light(tiny_checkpoint, tmp_path):
    """Import, loading and generation bring no plots, no reference, no other port; the import alone no torch."""
    code = """if True:
    import sys, entropix_lab as lab
    heavy = {"matplotlib", "llama_models", "transformers"}
    assert not {"torch", *heavy} & set(sys.modules), {"torch", *heavy} & set(sys.modules)
    model = lab.load_model("Llama3.2-1B")
    lab.generate(model, [[1, 2, 3]], 2, lab.samplers.adaptive(clarifying=None), trace=True)
    lab.trace_text(model, [1, 2, 3])
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    assert lab.plots.layer_diff and "matplotlib" in sys.modules
    """
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "Llama3.2-1B").symlink_to(tiny_checkpoint())  # where Meta's downloader puts it
    env = os.environ | {"LLAMA_MODELS_CONFIG_DIR": str(tmp_path)}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time here
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
