"""Folders that transformers itself writes, and ours in its format: the same weights, taps and tokens."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import entropix_lab as lab
from entropix_lab.checkpoints import find, safetensors
from entropix_lab.checkpoints.demo import DEMO_MODEL

pytestmark = pytest.mark.in_haste

TOKENS = np.random.default_rng(0).integers(0, 128, (2, 40))
FACTOR_32 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0) | dict(
    original_max_position_embeddings=16, rope_theta=500000.0
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A factory of random models that transformers writes: changes of its config -> folder."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    def make(dtype="float32", max_shard_size="50GB", **change):
        torch.manual_seed(0)
        sizes = dict(hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4, vocab_size=128)
        rest = dict(num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=FACTOR_32, max_position_embeddings=512)
        folder = tmp_path_factory.mktemp("written")
        hf = LlamaForCausalLM(LlamaConfig(**(sizes | rest | change)))
        hf.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return make


@pytest.mark.parametrize(
    "change",
    [
        dict(),
        dict(num_key_value_heads=4, intermediate_size=171),  # MHA, an odd width
        dict(num_key_value_heads=1, tie_word_embeddings=True),  # MQA
        dict(tie_word_embeddings=True, max_shard_size="40KB"),
        dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0), max_shard_size="40KB"),
    ],
)
def test_every_tap_is_transformers(written, change):
    folder = written(**change)
    model = lab.load_model(folder)
    report = lab.compare(model, lab.load_hugging_face(folder), TOKENS)
    assert report.passed and len(report.rows) == 48, report.explain()
    assert "of transformers'" in report.verdict
    assert (model.weights.output is model.weights.tok_embeddings) == change.get("tie_word_embeddings", False)


def test_a_wrong_permutation_bites(written, monkeypatch):
    folder = written()
    monkeypatch.setattr(safetensors, "rows_to_pairs", lambda w, head_dim: w)
    report = lab.compare(lab.load_model(folder), lab.load_hugging_face(folder), TOKENS)
    assert report.first_divergence.tap == "layers.0.attention.wq"


def test_metas_code_on_the_same_folder(written):
    """Meta's Transformer from a Hugging Face folder, and in words where its RoPE differs by design."""
    folder = written()
    model = lab.load_model(folder)
    with pytest.raises(ValueError, match=r"by design.*rope_scaling_factor is 32\.0 \(8\.0.*old_context_len is 16"):
        lab.compare(model, folder, TOKENS)
    with pytest.warns(UserWarning, match=r"rope_scaling_factor is 32\.0 \(8\.0 in Meta's code\)"):
        reference = lab.load_reference(folder)
    as_metas = dataclasses.replace(model, config=model.config.in_metas_code)
    assert lab.compare(as_metas, reference, TOKENS).passed
    with pytest.raises(ValueError, match="by design.*rope_scaling_factor is 8.0 in the model and 32.0"):
        lab.compare(as_metas, lab.load_hugging_face(folder), TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bits_of_the_file(written, dtype):
    folder = written(dtype)
    tensors = dict(meta_tensors(folder))
    stored = lab.load_hugging_face(folder).model.layers[1].self_attn.v_proj.weight
    assert str(tensors["layers.1.attention.wv.weight"].dtype) == dtype
    assert np.array_equal(np.float32(tensors["layers.1.attention.wv.weight"]), stored.detach().numpy())


def meta_tensors(folder):
    return find.read_tensors(folder, lab.load_config(folder))


@pytest.mark.parametrize(("dtype", "tied"), [("float32", True), ("bfloat16", False)])
def test_round_trips_are_bit_exact(tiny_checkpoint, tmp_path, dtype, tied):
    official = tiny_checkpoint(dtype, tied=tied)
    model = lab.load_model(official, dtype)
    assert lab.load_reference(lab.save_official(model, tmp_path / "two", shards=2))
    theirs = lab.save_hugging_face(model, tmp_path / "hf")
    in_three = lab.save_hugging_face(model, tmp_path / "hf3", shards=3)
    back = lab.save_official(lab.load_model(theirs, dtype), tmp_path / "back")
    whole = dict(meta_tensors(official))
    for folder in (tmp_path / "two", theirs, in_three, back):
        assert lab.load_config(folder).ffn_dim == model.config.ffn_dim
        assert all(np.array_equal(whole[n].view("u1"), x.view("u1")) for n, x in meta_tensors(folder)), folder
    again = torch.load(back / "consolidated.00.pth", weights_only=True)
    shared = again["output.weight"].data_ptr() == again["tok_embeddings.weight"].data_ptr()
    assert shared == tied
    with pytest.raises(ValueError, match="2 key/value heads cannot be split into 4"):
        lab.save_official(model, tmp_path / "four", shards=4)
    with pytest.raises(FileExistsError):
        lab.save_hugging_face(model, theirs)


def test_the_demo_model(demo, tmp_path):
    folder = lab.save_hugging_face(demo, tmp_path / DEMO_MODEL, shards=2)
    model = lab.load_model(folder)
    ours, theirs = lab.weights.by_name(model.weights), lab.weights.by_name(demo.weights)
    assert all(np.array_equal(ours[name], x) for name, x in theirs.items())
    tokens = [lab.generate(m, "The capital of France is", 12, seed=0)[0].tokens for m in (demo, model)]
    assert np.array_equal(*tokens) and model.config == demo.config
    assert model.tokenizer.stop_tokens == demo.tokenizer.stop_tokens


def edit(folder, **change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', expected 'llama'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"use_qk_norm": True}, "use_qk_norm is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 32}, r"head_dim is 32, expected hidden_size / num_attention_heads \(64 / 4\)"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        (
            {"rope_parameters": FACTOR_32 | {"factor": None}},
            "rope_scaling_factor must be .*, found None",
        ),
        ({"rope_parameters": 3}, "rope_parameters must be an object or null, found 3"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number, found '64'"),
        ({"num_hidden_layers": 2**30}, "1073741824 layers, found 30 tensors"),
        ({"num_hidden_layers": 4}, r"missing model\.layers\.3\.input_layernorm\.weight"),
        ({"vocab_size": 130}, r"lm_head\.weight: expected shape \(130, 64\), found \(128, 64\)"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
    ],
)
def test_what_is_no_plain_llama_is_refused_by_its_field(written, change, message):
    folder = written()
    edit(folder, **change)
    with pytest.raises(lab.CheckpointError, match=message):
        lab.load_model(folder)


def test_older_spelling_of_rope(written):
    folder = written()
    new = lab.load_config(folder)
    rope = {name: x for name, x in FACTOR_32.items() if name != "rope_theta"}
    edit(folder, rope_parameters=None, rope_scaling=rope, rope_theta=500000.0)
    assert lab.load_config(folder) == new and new.rope_scaling_factor == 32


def test_an_index_that_lies(written):
    folder = written(max_shard_size="40KB")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    moved = index["weight_map"] | {"model.norm.weight": index["weight_map"]["model.embed_tokens.weight"]}
    for weight_map, message in [
        (moved, r"model\.norm\.weight is named in .*index\.json and is not in it|is in it all the same"),
        (index["weight_map"] | {"x": "none.safetensors"}, r"none\.safetensors: named in .*, found nothing"),
        ({"x": "../y"}, "expected a weight_map"),
    ]:
        file.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(lab.CheckpointError, match=message):
            lab.load_model(folder)


def test_names_in_the_caches(written, tmp_path, tiny_checkpoint):
    """Hugging Face's cache, found by its environment variables, which are read when its library is imported."""
    commit = "0" * 39 + "1"
    for repo in ("meta-llama--Llama-3.2-1B-Instruct", "somebody--Fine-Tune"):
        root = tmp_path / "hub" / f"models--{repo}"
        (root / "snapshots").mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        written().rename(root / "snapshots" / commit)
    code = f"""if True:
    import entropix_lab as lab
    for name in ("Llama3.2-1B-Instruct", "Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct@{commit}"):
        assert lab.load_model(name).name == "Llama-3.2-1B-Instruct"
    for name in ("somebody/Fine-Tune", "somebody/Fine-Tune@main"):
        assert lab.load_model(name).name == "Fine-Tune" and lab.load_config(name).rope_scaling_factor == 32
    for name in ("somebody/Fine-Tune@v2", "unsloth/Llama-3.2-1B-Instruct"):
        try:
            lab.load_model(name)
        except lab.CheckpointError as e:
            assert "hf download" in str(e)
        else:
            raise AssertionError(name)
    """
    for variables in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        environment = os.environ | variables | {"LLAMA_MODELS_CONFIG_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Llama3.2-1B-Instruct:int4-qlora-eo8", "int4 with LoRA adapters"),
        ("meta-llama/Llama-3.2-1B-Instruct-SpinQuant_INT4_EO8", "its weights are int4"),
        ("Llama-Guard-3-8B:int8", "its weights are int8"),
        ("meta-llama/Llama-3.2-11B-Vision", "it reads images"),
        ("Llama-Guard-3-11B-Vision", "it reads images"),
        ("Llama-2-7b", "not of the Llama 3 family"),
        ("Llama-4-Scout-17B-16E", "not of the Llama 3 family"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_refused_by_name(name, reason, there, tiny_checkpoint, tmp_path, monkeypatch):
    """Also where Meta's downloader has put it."""
    monkeypatch.setenv("LLAMA_MODELS_CONFIG_DIR", str(tmp_path))
    if there:
        folder = tmp_path / "checkpoints" / name.rsplit("/", 1)[-1].replace(":", "-")
        shutil.copytree(tiny_checkpoint(), folder)
        params = json.loads((folder / "params.json").read_text())
        args = {} if name == "Llama-2-7b" else {"quantization_args": {}}  # that one looks like any other
        (folder / "params.json").write_text(json.dumps(params | args))
    with pytest.raises(lab.CheckpointError, match=reason):
        lab.load_model(name)


@pytest.mark.parametrize(
    "name", ["Llama-3-8B", "meta-llama/Meta-Llama-3-8B", "Llama3.1-405B", "Llama-3.3-70B-Instruct", "Llama-Guard-2-8B"]
)
def test_text_models_of_the_family_are_known(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_MODELS_CONFIG_DIR", str(tmp_path))
    with pytest.raises(lab.CheckpointError, match="is not on this machine"):
        lab.load_model(name)
