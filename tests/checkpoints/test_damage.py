"""Folders of both formats, broken in every way that we know and at random: the error is ours, or the load equal.

What nobody can know is left out: a weight whose bits flip in a file that has no sum, and a number of the configuration
that no shape shows.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import entropix_lab as lab
from entropix_lab.checkpoints import sums, write
from entropix_lab.tokenizer import rank_lines

MUTATIONS = int(os.environ.get("MUTATIONS", 80))  # of each kind of folder; more with MUTATIONS=300
MEMORY = 300e6  # bytes that no damage may ask for more than
BYTES = {bytes([b]): b for b in range(256)}
VOCABULARY = 256 + 256  # Llama 3's special tokens come after


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: (folder, what it loads)}: Meta's format with and without its checklist, Hugging Face's."""
    root = tmp_path_factory.mktemp("damage")
    params = write.TINY | dict(n_layers=1, dim=32, vocab_size=VOCABULARY)
    make = lambda name, tied=True: write.write_random_checkpoint(
        root / name, params, shards=2, tied=tied, tokenizer_model=rank_lines(BYTES)
    )
    kinds = {"checklist": make("checklist"), "crc": make("crc")}
    (kinds["crc"] / "checklist.chk").unlink()
    kinds["safetensors"] = lab.save_hugging_face(
        lab.load_model(make("untied", tied=False)), root / "safetensors", shards=2
    )
    return {kind: (folder, lab.load_model(folder)) for kind, folder in kinds.items()}


@pytest.fixture
def broken(folders, tmp_path):
    """A function: kind -> a copy of that folder, to be broken."""
    return lambda kind: shutil.copytree(folders[kind][0], tmp_path / kind)


def flip(file, at=-2000, mask=16):
    data = bytearray(file.read_bytes())
    data[at] ^= mask
    file.write_bytes(data)


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def retensor(file, change):
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


def reheader(file, change):
    """Change the header of a safetensors file as text, its length kept true."""
    data = file.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = change(data[8 : 8 + n].decode()).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + n :])


def swap(a, b):
    a.rename(b.with_suffix(".tmp"))
    b.rename(a)
    b.with_suffix(".tmp").rename(b)


P0, P1 = "consolidated.00.pth", "consolidated.01.pth"
S0, S1 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
GAINS = "model.layers.0.post_attention_layernorm.weight"  # in S1
NAN = lambda t: t[GAINS].__setitem__(3, float("nan"))
OTHER_TOKENIZER = rank_lines(BYTES | {b"%d" % i: 256 + i - 1000 for i in range(1000, 3000)})
DAMAGES = {  # name: (kind, what is done to the folder, what the error says)
    "truncated": ("crc", lambda f: os.truncate(f / P1, 5000), f"{P1}: expected a torch file of 5,000 bytes"),
    "truncated, checklist": ("checklist", lambda f: os.truncate(f / P1, 5000), f"{P1}: expected md5"),
    "truncated, safetensors": ("safetensors", lambda f: os.truncate(f / S1, 5000), f"{S1}: expected a safetensors"),
    "zero-length": ("crc", lambda f: os.truncate(f / P0, 0), f"{P0}: expected a torch file of 0 bytes"),
    "zero-length, safetensors": ("safetensors", lambda f: os.truncate(f / S0, 0), f"{S0}: expected a safetensors"),
    "doubled": ("crc", lambda f: (f / P0).write_bytes(2 * (f / P0).read_bytes()), "a download was appended"),
    "doubled, safetensors": ("safetensors", lambda f: (f / S0).write_bytes(2 * (f / S0).read_bytes()), "damaged"),
    "appended": ("crc", lambda f: (f / P0).write_bytes((f / P0).read_bytes() + b"x" * 100), "was appended"),
    "bit flipped": ("crc", lambda f: flip(f / P0, 9000), "another in the record"),
    "bit flipped, checklist": ("checklist", lambda f: flip(f / P0, 9000), f"{P0}: expected md5"),
    "a shard missing": ("crc", lambda f: (f / P0).unlink(), "Download the rest"),
    "shard count": ("crc", lambda f: (f / P1).unlink(), "expected shape"),
    "a shard copied": ("crc", lambda f: shutil.copy(f / P0, f / P1), f"{P1}: holds the same tensors as {P0}"),
    "shards swapped": ("crc", lambda f: swap(f / P0, f / P1), "changed places"),
    "shards swapped, checklist": ("checklist", lambda f: swap(f / P0, f / P1), "expected md5"),
    "shards swapped, safetensors": ("safetensors", lambda f: swap(f / S0, f / S1), f"named in {INDEX}"),
    "checklist stale": (
        "checklist",
        lambda f: edit(f / "params.json", norm_eps=2e-5),
        "checklist.chk is another version",
    ),
    "checklist binary": ("checklist", lambda f: (f / "checklist.chk").write_bytes(b"\xff\0\n"), "expected lines of"),
    "dtype": (
        "safetensors",
        lambda f: retensor(f / S1, lambda t: t.update({GAINS: torch.ones(32, dtype=torch.int32)})),
        f"{GAINS}: expected a float of 16 bits or more, found torch.int32",
    ),
    "NaN": ("safetensors", lambda f: retensor(f / S1, NAN), f"{GAINS}: expected finite weights, found 1 of 32"),
    "params.json": ("crc", lambda f: edit(f / "params.json", dim=64), "expected shape"),
    "params.json, a billion layers": (
        "crc",
        lambda f: edit(f / "params.json", n_layers=10**9),
        "n_layers|layers, found",
    ),
    "params.json, text": ("crc", lambda f: edit(f / "params.json", ffn_dim_multiplier="x"), "ffn_dim_multiplier"),
    "config.json": ("safetensors", lambda f: edit(f / "config.json", hidden_size=64, head_dim=None), "expected shape"),
    "index names no file": ("safetensors", lambda f: (f / S1).unlink(), f"{S1}: named in {INDEX}, found nothing"),
    "index names no tensor": (
        "safetensors",
        lambda f: retensor(f / S1, lambda t: t.pop(GAINS)),
        f"{GAINS} is named in {INDEX} and is not in it",
    ),
    "header lies about a shape": (
        "safetensors",
        lambda f: reheader(f / S1, lambda h: h.replace("[32,32]", "[32,33]")),
        f"{S1}: expected a safetensors file",
    ),
    "header lies about its length": (
        "safetensors",
        lambda f: (f / S1).write_bytes(struct.pack("<Q", 2**60) + (f / S1).read_bytes()[8:]),
        f"{S1}: expected a safetensors file",
    ),
    "tokenizer of another model": (
        "safetensors",
        lambda f: (f / "tokenizer.model").write_bytes(OTHER_TOKENIZER),
        "expected a tokenizer of the model's 512 tokens, found one of 2512",
    ),
    "a link to itself": (
        "safetensors",
        lambda f: ((f / S0).unlink(), (f / S0).symlink_to(f / S0)),
        f"{S0}: named in {INDEX}, found nothing",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_verify_says_the_same(broken, name):
    kind, damage, message = DAMAGES[name]
    folder = broken(kind)
    damage(folder)
    with pytest.raises(lab.CheckpointError, match=message):
        lab.load_model(folder)
    found = lab.verify(folder)
    assert not found.passed and "BAD" in str(found) and "bad" in found._repr_html_()


def test_whole_folders_pass(folders):
    for folder, _ in folders.values():
        assert lab.verify(folder).passed, lab.verify(folder)


def test_verify_reports_every_damage_at_once(broken):
    folder = broken("safetensors")
    retensor(folder / S0, lambda t: t["lm_head.weight"].view(-1).__setitem__(slice(3), float("inf")))
    retensor(folder / S1, NAN)
    (folder / "tokenizer.model").write_bytes(OTHER_TOKENIZER)
    text = str(lab.verify(folder))
    assert "found 3 of" in text and "found 1 of" in text and "another model's" in text and "3 of " in text


def test_a_cache_of_hugging_face_has_sums(folders, tmp_path):
    """Its files are links whose targets are named by their sha256 or git's sha1: there a flipped weight is known."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in folders["safetensors"][0].iterdir():
        blob = blobs / sums.digest(file, "sha256" if file.suffix == ".safetensors" else "sha1")
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    assert set(sums.verify_checksums(snapshot).values()) == {f"sha{n} of the Hugging Face cache" for n in (1, 256)}
    flip((snapshot / S0).resolve(), -100, 1)
    with pytest.raises(lab.CheckpointError, match=f"{S0}: expected sha256"):
        lab.load_model(snapshot)


def test_git_sha1_is_gits():
    assert sums.digest(os.devnull, "sha1") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_a_folder_without_permission(broken):
    """As another user, who may not open it: permissions do not bind root."""
    folder = broken("crc")
    if os.getuid():
        os.chmod(folder / P0, 0)
    code = """if True:
        import os, sys, entropix_lab as lab
        lab.load_config(sys.argv[1])
        if os.getuid() == 0:
            os.chmod(sys.argv[1], 0)
            os.seteuid(65534)
        try:
            lab.load_and_convert_weights(sys.argv[1])
        except lab.CheckpointError as e:
            print("refused", e)
    """
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert "refused" in done.stdout, done.stderr[-1500:]


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of a file stands in for the disk; a converted folder is whole or not there."""
    code = """if True:
        import resource, signal, sys, entropix_lab as lab
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            lab.demo.write_random_checkpoint(sys.argv[1], lab.demo.TINY)
        except lab.CheckpointError as e:
            print("refused", e)
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True)
    assert "refused" in done.stdout and "nothing is left" in done.stdout, done.stderr[-1500:]
    assert not list(tmp_path.iterdir())


# --- at random


def mutate(folder, rng):
    """One random damage to one random file."""
    files = sorted(folder.iterdir())
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    what = rng.choice(("truncate", "zero", "append", "flip", "header", "swap", "delete", "json"))
    at = rng.randrange(max(1, len(data)))
    if what == "truncate":
        data = data[:at]
    elif what == "zero":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif what == "append":
        data = data * 2 if rng.random() < 0.5 else data + rng.randbytes(100)
    elif what == "delete":
        return what, file.name, file.unlink()
    elif what == "swap":
        return what, file.name, swap(file, rng.choice([f for f in files if f != file]))
    elif what == "json" and file.suffix == ".json":
        text = data.decode()
        spots = [i for i, c in enumerate(text) if c.isdigit() or c in '",:{}']
        i = rng.choice(spots)
        data = (text[:i] + rng.choice(["0", "9", "99999", "-", "null", '"', "1e999"]) + text[i + 1 :]).encode()
    elif data:
        at = rng.randrange(min(len(data), 3000)) if what == "header" else at
        data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return what, file.name, None


def weights_changed_in_silence(folder, original):
    """Whether bytes of a safetensors file's tensors changed and nothing else: what nobody can know."""
    for name in (S0, S1):
        a, b = (f / name for f in (folder, original))
        if a.is_file() and b.is_file():
            a, b = a.read_bytes(), b.read_bytes()
            n = 8 + struct.unpack("<Q", b[:8])[0]
            if len(a) == len(b) and a[:n] == b[:n] and a != b:
                return True
    return False


@pytest.mark.parametrize("kind", ["checklist", "crc", "safetensors"])
def test_random_damage_is_a_named_error_or_an_equal_load(folders, tmp_path, kind):
    original, model = folders[kind]
    expected = lab.weights.by_name(model.weights)

    @settings(max_examples=MUTATIONS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def run(seed):
        folder = tmp_path / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        done = mutate(folder, random.Random(seed))
        report = lab.verify(folder)  # never raises
        try:
            loaded = lab.load_model(folder)
        except lab.CheckpointError:
            assert not report.passed, (done, str(report))
            return
        if weights_changed_in_silence(folder, original):
            return
        found = lab.weights.by_name(loaded.weights)
        assert all(np.array_equal(found[name], x) for name, x in expected.items()), done

    with lab.verdict.peak_memory() as peak:
        run()
    # a few folders' worth, whatever a header says of itself
    assert peak["bytes"] is None or peak["bytes"] < MEMORY, f"{peak['bytes'] / 1e6:.0f} MB"
