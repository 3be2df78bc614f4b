"""The smallest run of each benchmark, as a person starts it: it ends, and what it writes has the figures in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from entropix_lab.faithful import forward

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    """A folder: one layer, without scaled RoPE, which the GGUF that peers.py writes cannot say."""
    return tiny_checkpoint(texts=True, n_layers=1, use_scaled_rope=False)


def run(name, *args):
    """The lines that a script prints."""
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time here
    command = [sys.executable, BENCHMARKS / f"{name}.py", *map(str, args)]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_gpu(tmp_path):
    printed = run("gpu", "--tiny", "--only", "products", "--outputs", tmp_path)
    found = json.loads((tmp_path / "gpu_tiny.json").read_text())
    assert list(found) == ["machine", "products"] and printed[-1].endswith("something failed in: []")
    assert found["machine"]["bytes_per_s"] > 0 and "jaxlib" in found["machine"]["environment"]
    assert list(found["products"]) == ["bfloat16", "float32", "float32 as TF32", "float64", "took_s"]
    assert min(found["products"].values()) > 0


def test_loading(model):
    head, _, row = run("loading", model, "--dtypes", "float32", "--repeats", 1)
    found = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)), strict=True))
    assert (found["files"], found["loaded as"], found["devices"]) == (str(model), "float32", "1")
    number = lambda name: float(found[name].split()[0])
    assert number("load / copy") > 0 and (number("peak") > 0 or not Path("/proc/self/status").exists())
    assert min(number(name) for name in ("weights", "sums, once", "load", "read + copy")) >= 0


def test_llama32_shape(model, tmp_path):
    (tmp_path / "tiny-random").symlink_to(model)  # as --folder keeps it: no real shape is small
    row, environment, verdict = run("llama32_shape", "tiny", "float32", "--tokens", 8, "--folder", tmp_path)
    row = json.loads(row)
    assert (row["model"], row["tokens"], row["layers"], row["devices"]) == ("tiny-random", 8, 1, 1)
    assert row["load_s"] > 0 and row["compare_s"] > 0 and 0 < row["logits_rel_l2_worst"] < 1e-5
    assert verdict.startswith("PASS tiny-random float32: 18 of 18 taps ") and "jaxlib" in environment


def test_faithful(model):
    _, head, *rows = run("faithful", "--model", model, "--dtype", "bfloat16")
    assert head.split() == ["bfloat16", "max", "abs", "mean", "KL", "changed"]
    found = {row[:26].strip(): row[26:].split() for row in rows}
    originals = [f"{revision}, gap of {gap}" for revision in ("cceeb84", "9d41be6") for gap in (0, 1)]
    assert list(found) == [d.name for d in forward.DEVIATIONS if d.needs in ("", "bfloat16")] + originals
    assert all(row[3:] == ["of", "189"] for row in found.values())  # the bytes of the text but for the prompt's 24
    moved = {name: float(row[0]) for name, row in found.items()}
    # a position left out, alone and in the original, moves more than any rounding
    gaps = {name for name in found if name == "gap" or name.endswith("gap of 1")}
    assert min(moved[name] for name in gaps) > 5 * max(moved[name] for name in set(found) - gaps) > 0


def test_faults(model, tmp_path):
    """One fault on the model and one that needs scaled RoPE, beside the rows of another run."""
    file, old = tmp_path / "faults_float32.json", [{"name": "F04", "tokens": 50}, {"name": "F05", "tokens": 16}]
    file.write_text(json.dumps({"faults": [*old, {"name": "F04", "tokens": 16, "found": "before"}]}))
    options = "--only faults --lengths 16 --names F04 F11 --dtype float32".split()
    printed = run("faults", "--model", model, "--outputs", tmp_path, *options)
    found = json.loads(file.read_text())
    rows = found["faults"][2:]
    assert found["faults"][:2] == old and rows == list(map(json.loads, printed))
    assert [(row["name"], row["model"], row["tokens"]) for row in rows] == [
        ("F04", "tiny-scaled", 16),
        ("F11", "tiny", 16),
    ]
    assert all(row["found"] == row["expected"] and row["limit_ratio"] > 1 for row in rows)
    assert found["faults_seconds"] > 0 and "dtype=float32" in found["environment"]


@pytest.mark.parametrize("peers", [["Meta's reference", "transformers"], ["llama.cpp"]], ids=" and ".join)
def test_peers(model, tmp_path, peers):
    if "llama.cpp" in peers:
        pytest.importorskip("llama_cpp")
    file, other = tmp_path / "peers.json", {"dtype": "float32", "batch": 1, "position": 16, "peer": "entropix_lab"}
    replaced = other | {"batch": 2}
    file.write_text(json.dumps({"rows": [other, replaced]}))
    options = "--json --rounds 1 --tokens 2 --batches 2 --positions 16".split()
    run("peers", "--model", model, "--outputs", tmp_path, *options, "--peers", *peers)
    found = json.loads(file.read_text())
    assert found["machine"]["processors"] == os.cpu_count() and "jaxlib" in found["machine"]["environment"]
    assert found["earlier"] == [replaced]
    assert found["rows"][0] == other and {row["peer"] for row in found["rows"][1:]} == {"entropix_lab", *peers}
    for row in found["rows"][1:]:
        assert (row["dtype"], row["batch"], row["position"], row["same_first_token"]) == ("float32", 2, 16, True)
        rates = "first_token_ms prefill_tokens_per_s tokens_per_s ours_over_theirs threads prompt_threads gb_per_s"
        assert min(row[name] for name in rates.split()) > 0
        assert row["peer"] != "entropix_lab" or row["ours_over_theirs"] == 1


def test_samplers(model, tmp_path):
    options = "--tasks 5 --samples 1 --max-new-tokens 2 --parts forks curve branching".split()
    run("samplers", "--model", model, "--outputs", tmp_path, *options)
    found, forks = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("samplers", "samplers_forks"))
    curve = {f"T {t}" for t in (0.2, 0.4, 0.6, 0.7, 0.8, 1.0, 1.2)}
    chosen = {"likeliest of 2 at T 0.7", "majority of 2 at T 0.7", "likeliest at branching's cost"}
    assert set(found["runs"]) == {"greedy", "branching", *curve, *chosen} and found["seconds"] > 0
    for name in {"greedy", *curve}:
        run_ = found["runs"][name]
        samples = 2 if name == "T 0.7" else 1
        assert (run_["part"], run_["samples"]) == ("test", samples) and min(run_["surprisal"]) > 0
        assert all(0 <= n <= samples for n in run_["passed"]) and len(run_["passed"]) == 5
        assert all(samples <= n <= 2 * samples for n in run_["tokens"])
    assert [len(task["second"]) for task in forks["tasks"]] == found["runs"]["greedy"]["tokens"]
    assert forks["settings"] == found["settings"] and forks["settings"]["tasks"] == 5
