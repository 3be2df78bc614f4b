"""An official checkpoint in transformers' Llama, whose RoPE pairs other entries: Meta's logits, and Meta's queries."""

import sys

import numpy as np
import pytest
import torch

import entropix_lab as lab
from entropix_lab.checkpoints.safetensors import to_halves
from entropix_lab.proof.hugging_face import load_hugging_face, meta_name, to_pairs

TOKENS = np.random.default_rng(0).integers(0, 128, (2, 40))


def run(hf):
    with torch.inference_mode():
        return hf(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize(("scaled", "tied"), [(True, True), (True, False), (False, True)])
def test_metas_logits(tiny_checkpoint, scaled, tied, attention):
    folder = tiny_checkpoint(use_scaled_rope=scaled, tied=tied)
    hf = load_hugging_face(folder, attn_implementation=attention)
    assert (hf.lm_head.weight is hf.model.embed_tokens.weight) == tied
    np.testing.assert_allclose(run(hf), lab.get_local_llama_logits(TOKENS, folder), atol=1e-5)


def test_bfloat16(tiny_checkpoint):
    folder = tiny_checkpoint("bfloat16", shards=2)
    hf, metas = load_hugging_face(folder, "bfloat16"), lab.get_local_llama_logits(TOKENS, folder, "bfloat16")
    assert hf.dtype == torch.bfloat16
    error = np.linalg.norm(run(hf) - metas, axis=-1) / np.linalg.norm(metas, axis=-1)
    assert np.median(error) < 0.02  # it rotates in bfloat16, Meta's code in float32
    np.testing.assert_allclose(run(load_hugging_face(folder)), lab.get_local_llama_logits(TOKENS, folder), atol=1e-5)


def test_taps_under_metas_names(tiny_checkpoint):
    folder, taps = tiny_checkpoint(), {}
    hf, metas = load_hugging_face(folder), lab.load_reference(folder).taps(TOKENS)
    for name, module in hf.named_modules():
        if (tap := meta_name(name)) in metas:
            module.register_forward_hook(lambda m, args, out, tap=tap: taps.update({tap: out}))
    run(hf)
    assert len(taps) == 3 + 10 * len(hf.model.layers)
    for tap, x in taps.items():
        x = to_pairs(x, hf.config.head_dim) if tap.endswith(("wq", "wk")) else x
        np.testing.assert_allclose(x.numpy(), metas[tap], atol=1e-5, err_msg=tap)


def test_orders():
    w = torch.arange(24.0).reshape(12, 2)  # two heads of six rows
    assert to_halves(w, 6)[:, 0].div(2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(to_pairs(to_halves(w, 6).T, 6), w.T)


def test_without_transformers(tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'not installed: pip install "entropix_lab\[peers\]"'):
        load_hugging_face(tiny_checkpoint())
