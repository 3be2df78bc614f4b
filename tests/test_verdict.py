import json

import numpy as np
import pytest

from entropix_lab import verdict


def test_line():
    assert verdict.line(True, "x", "a", "b") == "PASS x: a; b"
    assert verdict.line(False, "x", "a").startswith("FAIL x")


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
        np.ones(50_000_000).sum()
    if peak["bytes"] is not None:
        assert 390e6 < peak["bytes"] < 480e6
