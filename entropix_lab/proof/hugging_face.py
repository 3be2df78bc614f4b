"""transformers' Llama, another port: loaded, tapped under Meta's names, and compared.

Its RoPE pairs the entries j and j + H/2 of a head where Meta's pairs 2j and 2j + 1: queries and keys are put back
(to_pairs) before they are compared.
"""

import re
import warnings

import numpy as np

from ..checkpoints import safetensors
from ..checkpoints.find import find_checkpoint, read_tensors, reader_of
from ..checkpoints.safetensors import NAMES, config_json, config_of, hugging_face_name, to_halves
from ..llama.config import dtype_name
from .reference import module_taps


def meta_name(name: str) -> str:
    """ "model.layers.3.self_attn.q_proj" -> "layers.3.attention.wq", the name of its weights and of its tap."""
    name = name.removeprefix("model.")
    for metas, theirs in NAMES.items():
        name = re.sub(rf"(^|\.){theirs.removeprefix('model.')}(?=\.|$)", rf"\g<1>{metas}", name)
    return name


def to_pairs(x, head_dim):
    """Queries or keys as transformers orders them, [...,heads*H] or [...,heads,H], in Meta's order."""
    return x.reshape(*x.shape[:-1], -1, 2, head_dim // 2).swapaxes(-1, -2).reshape(x.shape)


def load_hugging_face(path, dtype="float32", attn_implementation="eager"):
    """transformers' LlamaForCausalLM of a checkpoint (a folder or a name), on the CPU. compare takes it as a reference.

    A Hugging Face folder is read by transformers itself; one in Meta's format by ours, and handed over.
    attn_implementation: "eager" hands out attention scores and probabilities; None takes transformers' own choice.
    Raises CheckpointError for whatever is wrong with the files, ImportError where transformers is not installed.
    """
    import torch

    try:
        with warnings.catch_warnings():  # a progress bar's, in notebooks without ipywidgets
            warnings.filterwarnings("ignore", message="IProgress not found")
            from transformers import LlamaConfig, LlamaForCausalLM
            from transformers.utils import logging
    except ModuleNotFoundError as e:
        if e.name != "transformers":  # something that it needs
            raise
        raise ImportError('transformers is not installed: pip install "entropix_lab[peers]"') from e
    dtype = getattr(torch, dtype_name(dtype))
    folder = find_checkpoint(path)
    reader = reader_of(folder)
    config = reader.read_config(folder)
    if reader is safetensors:
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attn_implementation).eval()
        finally:
            if bars:
                logging.enable_progress_bar()
    tensors = dict(read_tensors(folder, config))
    tied = np.array_equal(tensors["output.weight"], tensors["tok_embeddings.weight"])
    theirs = LlamaConfig(**config_json(config, tied), attn_implementation=attn_implementation)
    with torch.device("meta"):
        hf = LlamaForCausalLM(theirs)
    state = {}
    for name in list(tensors):
        tensor = torch.from_numpy(np.array(tensors.pop(name), np.float32)).to(dtype)
        halves = name.endswith(("wq.weight", "wk.weight"))
        state[hugging_face_name(name)] = to_halves(tensor, config.head_dim) if halves else tensor
    hf.load_state_dict(state, strict=True, assign=True)
    hf.tie_weights()  # as the config says
    hf.model.rotary_emb = type(hf.model.rotary_emb)(theirs)  # its buffers are not in the state
    return hf.eval()


class HuggingFaceTaps:
    """The taps of a LlamaForCausalLM of transformers, under Meta's names and in Meta's order."""

    def __init__(self, hf):
        self.hf, self.config = hf, config_of(hf.config.to_dict(), "the config of transformers' model")
        self.dtype = str(hf.dtype).removeprefix("torch.")

    def taps(self, tokens, sink):
        """sink(name, value) takes every value of tokens [B,T] in the order of execution, float32. Scores and
        probabilities are there with attn_implementation="eager" alone. Module outputs come from forward hooks, the
        rest from a pre-hook and from wrapping two functions for the time of this call."""
        import torch
        from transformers.models.llama import modeling_llama as theirs

        turn, softmax = theirs.apply_rotary_pos_emb, torch.nn.functional.softmax

        def record(name, x):
            if name.endswith(("wq", "wk", "_rope")):
                x = to_pairs(x, self.config.head_dim)
            sink(name, x.detach().float().cpu().numpy())

        def rotate(*args, **kwargs):
            out = turn(*args, **kwargs)
            for name, x in zip(("xq_rope", "xk_rope"), out, strict=True):
                record(f"{layers[-1]}.attention.{name}", x.swapaxes(1, 2))
            return out

        def soften(scores, **kwargs):
            masked = scores <= torch.finfo(scores.dtype).min / 2
            record(f"{layers[-1]}.attention.scores", scores.masked_fill(masked, float("-inf")))
            probs = softmax(scores, **kwargs)
            record(f"{layers[-1]}.attention.probs", probs.to(scores.dtype))
            return probs

        names = {meta_name(name): module for name, module in self.hf.named_modules()}
        ids = torch.tensor(np.asarray(tokens), dtype=torch.long, device=self.hf.device)
        with module_taps(names, record) as layers, torch.inference_mode():
            try:
                theirs.apply_rotary_pos_emb, torch.nn.functional.softmax = rotate, soften
                self.hf(ids, use_cache=False)
            finally:
                theirs.apply_rotary_pos_emb, torch.nn.functional.softmax = turn, softmax
