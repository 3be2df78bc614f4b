"""The files around the package say the same things, and the notebooks are what they promise to be."""

import ast
import re
import subprocess
import sys
import tomllib
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image

import entropix_lab as lab
from entropix_lab.plots.style import with_palette

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_environment_yml_installs_what_pyproject_names():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python>="))
    numbers = lambda version: tuple(map(int, version.split(">=")[1].split(".")))
    assert numbers(python) >= numbers(PROJECT["requires-python"])
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[notebooks,test]"]
    assert 'pip install --quiet --constraint constraints.txt --editable ".[notebooks,test]"' in (
        ROOT / "Makefile"
    ).read_text().replace("$(BIN)/", "")


def test_constraints_lie_in_the_ranges():
    from packaging.requirements import Requirement

    wanted = [*PROJECT["dependencies"], *(r for rs in PROJECT["optional-dependencies"].values() for r in rs)]
    ranges = {r.name.replace("_", "-"): r for r in map(Requirement, wanted) if not r.extras}
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "#"]
    for pin in pins:
        name, version = pin.name.replace("_", "-"), str(pin.specifier).removeprefix("==")
        assert name not in ranges or version in ranges[name].specifier, name


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert f"\n## {PROJECT['version']} - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_front_picture_is_the_one_of_the_notebook():
    """-p write layer_diff.png of 03 keeps it."""
    cells = nbformat.read(ROOT / "notebooks" / "03_compare.ipynb", 4).cells
    (shown,) = (c.outputs for c in cells if c.source.startswith("lab.plots.layer_diff(report)"))
    with_its_palette = BytesIO()
    with_palette(Image.open(ROOT / "outputs" / "layer_diff.png")).save(with_its_palette, format="png", optimize=True)
    assert b64decode(shown[0].data["image/png"]) == with_its_palette.getvalue()


def test_a_saved_figure_keeps_its_colours(tmp_path):
    """What a notebook asks for, bytes in memory, has a palette; a file has what matplotlib's own has."""
    fig, shown = lab.plots.style.figure()[0], BytesIO()
    fig.savefig(tmp_path / "saved.png", transparent=True, metadata={"Title": "x"})
    with Image.open(tmp_path / "saved.png") as saved:
        assert saved.mode == "RGBA" and saved.getpixel((0, 0))[3] == 0 and saved.text["Title"] == "x"
    fig.savefig(shown, format="png")
    assert Image.open(shown).mode == "P"


def test_no_file_is_long():
    """No file, nor all that a forward and a generation take together."""
    package = ROOT / "entropix_lab"
    lengths = {str(f.relative_to(package)): len(f.read_text().splitlines()) for f in package.rglob("*.py")}
    assert not {name: n for name, n in lengths.items() if n > 300}
    beside = ("llama/sharding.py", "generation/branching.py")
    assert lengths.keys() >= set(beside)
    core = {name: n for name, n in lengths.items() if name.startswith(("llama/", "generation/")) and name not in beside}
    assert sum(core.values()) <= 900, core


def test_ruff():
    for command in (["check", "."], ["format", "--check", "entropix_lab", "tests", "benchmarks", "conftest.py"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    @pytest.fixture
    def code(self, path):
        return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]

    def test_form(self, path):
        cells = nbformat.read(path, 4).cells
        assert cells[0].source.startswith(f"# {path.stem[:2]} ") and "| time |" in cells[0].source
        assert "parameters" in cells[1].metadata.get("tags", [])
        assert any(c.cell_type == "markdown" and c.source.startswith("## Recap") for c in cells[-4:])

    def test_was_run_from_top_to_bottom(self, code):
        assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
        assert not any(o.output_type == "error" for c in code for o in c.outputs)

    def test_every_verdict_is_pass(self, code):
        """nbval compares with what is committed: it is content with a FAIL that was committed."""
        printed = [line for c in code for o in c.outputs for line in o.get("text", "").splitlines()]
        assert not [line for line in printed if line.startswith("FAIL ")]

    def test_is_compared(self, code):
        tags = [t for c in code for t in c.metadata.get("tags", [])]
        assert "nbval-skip" not in tags and tags.count("nbval-ignore-output") * 3 < len(code)
        verdicts = [c for c in code if any("PASS" in o.get("text", "") for o in c.outputs)]
        assert sum("nbval-ignore-output" not in c.metadata.get("tags", []) for c in verdicts) >= 3

    def test_code_comes_from_the_package(self, code):
        for c in code:
            tree = ast.parse(c.source)
            for node in ast.walk(tree):
                assert not isinstance(node, ast.ClassDef)
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 5, node.name
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lab":
                    assert hasattr(lab, node.attr), f"entropix_lab has no {node.attr}"
            assert not re.search(r"^\s*[%!]|pip install|/home/|/root/|;\s*$", c.source, re.M)


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        (
            "compare",
            [
                r"papermill notebooks/03_compare.ipynb outputs/03_compare.ipynb",
                r"entropix_lab/verdict.py outputs/03_compare.ipynb",
            ],
        ),
        ("test", [r"OMP_NUM_THREADS=1 .venv/bin/python -m pytest$"]),
        ("lab", [r"jupyter lab notebooks"]),
    ],
)
def test_makefile(target, commands, tmp_path):
    """On a fresh machine each target makes the environment first and then does what it says."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True)
    steps = [r"-m venv .venv", r"pip install .*--editable", *commands]
    found = [re.search(step, done.stdout, re.M) for step in steps]
    assert done.returncode == 0 and all(found), done.stdout + done.stderr
    assert [m.start() for m in found] == sorted(m.start() for m in found)


def test_make_clean_removes_what_was_made_and_nothing_else(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    made = [".venv/pyvenv.cfg", "outputs/03_compare.ipynb", "outputs/09_faults.json"]
    committed = ["outputs/peers.json", "outputs/layer_diff.png", "notebooks/03_compare.ipynb", "pyproject.toml"]
    for name in made + committed:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()} == {"Makefile", *committed}
    assert not (tmp_path / ".venv").exists()
