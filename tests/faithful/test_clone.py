"""A clone of the original is recognised, imported, and nothing of it stays behind."""

import subprocess
import sys

import pytest

from entropix_lab.faithful import original


def git(folder, *args):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *who, *args], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Another repository in the original's form, taken for its last understood revision."""
    package = tmp_path / "entropix"
    package.mkdir()
    for name in ("model", "kvcache", "config", "weights"):
        (package / f"{name}.py").write_text("")
    (package / "sampler.py").write_text(
        "import chex\nimport jax.numpy as jnp\n"
        "@chex.dataclass(kw_only=True, frozen=True)\nclass SamplerConfig:\n    top_k: int = 27\n"
        "clipped = lambda x: jnp.clip(x, a_min=1, a_max=100)\n"
    )
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    return tmp_path


def test_a_clone_leaves_nothing_behind(clone, monkeypatch):
    monkeypatch.setattr(original, "REVISIONS", ("none", git(clone, "rev-parse", "HEAD")[:7]))
    path, modules, mine = list(sys.path), dict(sys.modules), object()
    monkeypatch.setitem(sys.modules, "entropix", mine)
    sampler = original.load(clone).modules["sampler"]
    assert sampler.SamplerConfig().top_k == 27 and sampler.clipped(500) == 100
    assert sys.path == path and sys.modules["entropix"] is mine
    assert not [
        m for m in set(sys.modules) - set(modules) if m.split(".")[0] in ("entropix", "chex") and m != "entropix"
    ]
    assert git(clone, "status", "--porcelain", "--ignored") == ""


def test_another_folder_is_refused(clone, tmp_path_factory):
    with pytest.raises(ValueError, match="cceeb84 or 9d41be6, found [0-9a-f]{7}"):
        original.load(clone)
    with pytest.raises(ValueError, match="found no git clone"):
        original.load(tmp_path_factory.mktemp("empty"))
