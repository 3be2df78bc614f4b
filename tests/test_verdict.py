import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import nbformat
import numpy as np
import papermill
import pytest

from entropix_lab import verdict


def test_line():
    assert verdict.line(True, "x", "a", "b") == "PASS x: a; b"
    assert verdict.line(False, "x", "a").startswith("FAIL x")


@pytest.mark.parametrize(
    ("printed", "fails"),
    [
        (["PASS a: b", "nothing"], False),
        (["PASS a: b", "a\nFAIL c: d\n"], True),
        (["found: FAIL as planted", "PASS a: b"], False),
        (["no verdict"], True),
        (["made here: cpu, jax 1, jaxlib 1", "PASS a: b"], False),
    ],
)
def test_make_fails_where_a_verdict_does(tmp_path, capsys, printed, fails):
    """The executed notebook decides, whichever it is; what is expected to fail does not begin a line with FAIL."""
    cells = [nbformat.v4.new_code_cell(f"print({text!r})") for text in printed]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False)
    with pytest.raises(SystemExit) as exit:
        verdict.show(tmp_path / "out.ipynb")
    assert bool(exit.value.code) == fails
    beginnings = ("PASS", "FAIL", "made here")
    shown = [line for text in printed for line in text.splitlines() if line.startswith(beginnings)]
    assert capsys.readouterr().out.splitlines() == shown
    script = Path(verdict.__file__)
    done = subprocess.run([sys.executable, "-S", script, tmp_path / "out.ipynb"], capture_output=True, text=True)
    assert bool(done.returncode) == fails and done.stdout.splitlines() == shown  # without any package


def test_listed():
    for value in ("64 512", "[64, 512]", "64,512", [64, 512], (64, 512)):
        assert verdict.listed(value) == [64, 512]
    assert verdict.listed("['F01', 'F02']") == ["F01", "F02"] == verdict.listed("F01 F02")
    assert verdict.listed("[]") == [] and verdict.listed(64) == [64] and verdict.listed("F01") == ["F01"]


def test_json_is_whole_or_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict, "outputs_dir", lambda: tmp_path)
    verdict.write_json("a.json", {"x": 1})
    with pytest.raises(TypeError):
        verdict.write_json("a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    verdict.write_json("a.json", {"x": [float("inf"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1]}


def test_outputs_are_those_of_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (verdict.outputs_dir() / "README.md").is_file()


def test_peak_memory_sees_what_was_freed_again():
    with verdict.peak_memory() as peak:
        array = np.ones(50_000_000)
        time.sleep(0.3)  # on a busy machine the samples come late
        del array
    if peak["bytes"] is not None:
        assert 390e6 < peak["bytes"] < 480e6


def test_peak_memory_of_an_accelerator(monkeypatch):
    """What it counts itself: also between two samples, and where more was in use before."""
    stats, asked = {"bytes_in_use": 100, "peak_bytes_in_use": 100}, threading.Event()

    class Device:
        def memory_stats(self):
            asked.set()
            return dict(stats)

    def take(n):
        stats["bytes_in_use"] += n
        stats["peak_bytes_in_use"] = max(stats.values())

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with verdict.peak_memory(interval=60) as peak:  # no sample in between
        take(900)
        take(-700)
    assert peak["bytes"] == 900
    with verdict.peak_memory(interval=1e-3) as peak:  # below what was in use before
        take(50)
        for _ in range(2):
            asked.clear()
            assert asked.wait(10)
        take(-50)
    assert peak["bytes"] == 50
