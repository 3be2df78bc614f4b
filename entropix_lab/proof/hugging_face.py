"""transformers' Llama with the weights of an official folder: another port, to be tapped and compared.

Its RoPE pairs the entries j and j + H/2 of a head where Meta's pairs 2j and 2j + 1: the rows of wq and wk are permuted
on the way in (to_halves), and queries and keys permuted back on the way out (to_pairs).
"""

import warnings

import numpy as np

from ..checkpoints.find import find_checkpoint
from ..checkpoints.meta import read_config, read_tensors

# Parts of transformers' names of modules -> Meta's.
NAMES = {
    "model.": "",
    "embed_tokens": "tok_embeddings",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "attention.",
    "mlp.": "feed_forward.",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "lm_head": "output",
}


def meta_name(name: str) -> str:
    """ "model.layers.3.self_attn.q_proj" -> "layers.3.attention.wq", the name of its weights and of its tap."""
    for theirs, metas in NAMES.items():
        name = name.replace(theirs, metas)
    return name


def to_halves(w, head_dim):
    """The rows of wq or wk, a tensor [heads*H,D] in Meta's order, in transformers' order."""
    return w.reshape(-1, head_dim // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def to_pairs(x, head_dim):
    """Queries or keys as transformers orders them, [...,heads*H] or [...,heads,H], in Meta's order."""
    return x.reshape(*x.shape[:-1], -1, 2, head_dim // 2).swapaxes(-1, -2).reshape(x.shape)


def load_hugging_face(path, dtype="float32", attn_implementation="eager"):
    """transformers' LlamaForCausalLM with the weights of an official checkpoint (a folder or a name), on the CPU.

    attn_implementation: "eager" hands out attention probabilities; None takes transformers' own choice. Raises
    CheckpointError for whatever is wrong with the files, ImportError where transformers is not installed.
    """
    import torch

    try:
        with warnings.catch_warnings():  # a progress bar's, in notebooks without ipywidgets
            warnings.filterwarnings("ignore", message="IProgress not found")
            from transformers import LlamaConfig, LlamaForCausalLM
    except ModuleNotFoundError as e:
        if e.name != "transformers":  # something that it needs
            raise
        raise ImportError('transformers is not installed: pip install "entropix_lab[peers]"') from e
    folder = find_checkpoint(path)
    c = read_config(folder)
    tensors = dict(read_tensors(folder, c))
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.use_scaled_rope:
        rope |= {"rope_type": "llama3", "factor": c.rope_scaling_factor, "original_max_position_embeddings": 8192}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        hidden_size=c.dim,
        intermediate_size=c.ffn_dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        vocab_size=c.vocab_size,
        rms_norm_eps=c.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=131072 if c.use_scaled_rope else 8192,
        tie_word_embeddings=np.array_equal(tensors["output.weight"], tensors["tok_embeddings.weight"]),
        attn_implementation=attn_implementation,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {}
    for name in model.state_dict():
        array = tensors.pop(meta_name(name))
        tensor = torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, dtype))
        state[name] = to_halves(tensor, c.head_dim) if name.endswith(("q_proj.weight", "k_proj.weight")) else tensor
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()  # as the config says
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are not in the state
    return model.eval()
