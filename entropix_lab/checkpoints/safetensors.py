"""Hugging Face's format: config.json and model*.safetensors of a folder, verified, under Meta's names in Meta's layout.

Hugging Face pairs the entries j and j + H/2 of a head for RoPE where Meta pairs 2j and 2j + 1, so the rows of wq and wk
are put back; every other tensor is the one in the file.
"""

from pathlib import Path

from ..files import read_json
from ..llama.config import CheckpointError, LlamaConfig, ffn_dim
from .tensors import Piece, Tensor, check_tensors, tensor_shapes

# Meta's name of a part -> Hugging Face's.
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# Meta's field -> config.json's, all of them needed.
FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
}
# What Llama has none of: field of config.json -> the values that say so.
PLAIN = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, None),
    "qk_norm": (False, None),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "quantization_config": (None,),
    "final_logit_softcapping": (None,),
    "num_local_experts": (None,),
}
ROPE = {
    "rope_scaling_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_old_context_len": "original_max_position_embeddings",
}


def hugging_face_name(name: str) -> str:
    """ "layers.3.attention.wq.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
    stem, _, end = name.rpartition(".")
    if stem.startswith("layers."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{NAMES[part]}.{end}"
    return f"{NAMES[stem]}.{end}"


def to_halves(w, head_dim):
    """The rows of wq or wk, a tensor [heads*H,D] in Meta's order, in Hugging Face's order."""
    return w.reshape(-1, head_dim // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def rows_to_pairs(w, head_dim):
    """The way back: the rows of q_proj or k_proj in Meta's order, a copy."""
    return w.reshape(-1, 2, head_dim // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def read_config(folder) -> LlamaConfig:
    """The LlamaConfig of a Hugging Face folder, from its config.json.

    Raises CheckpointError for what is no plain Llama, by the field that says so, and for a head_dim other than
    dim / n_heads, which Meta's code does not know.
    """
    file = Path(folder) / "config.json"
    return config_of(read_json(file), file)


def config_of(found: dict, file) -> LlamaConfig:
    """The same of a parsed config.json; file: what an error calls it."""
    for field, plain in PLAIN.items():
        if found.get(field) not in plain:
            raise CheckpointError(
                f"{file}: {field} is {found.get(field)!r:.80}, expected {plain[0]!r}: this is not a plain Llama. "
                "Its weights in another format (not quantised), or another model, are needed."
            )
    for field in (*FIELDS.values(), "intermediate_size"):
        if field != "rms_norm_eps" and (type(found.get(field)) is not int or not 0 < found[field] < 2**31):
            raise CheckpointError(f"{file}: {field} must be a positive whole number, found {found.get(field)!r:.80}")
    dim, heads, head_dim = found["hidden_size"], found["num_attention_heads"], found.get("head_dim")
    if head_dim is not None and (type(head_dim) is not int or head_dim * heads != dim):
        raise CheckpointError(
            f"{file}: head_dim is {head_dim!r:.80}, expected hidden_size / num_attention_heads ({dim} / {heads}): "
            "Meta's code knows no other"
        )
    try:
        multiple_of, multiplier = ffn_fields(dim, found["intermediate_size"])
        return LlamaConfig(
            **{ours: found.get(theirs) for ours, theirs in FIELDS.items()},
            n_kv_heads=found.get("num_key_value_heads"),
            multiple_of=multiple_of,
            ffn_dim_multiplier=multiplier,
            **_rope(file, found),
        )
    except CheckpointError as e:
        raise CheckpointError(f"{file}: {str(e).removeprefix('params.json: ')} (in Meta's names)") from e


def ffn_fields(dim: int, width: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier) that give a feed-forward layer of exactly this width: the largest power of two
    up to 256 that divides it, and a multiplier of as few digits as do, or none."""
    multiple_of, hidden = min(256, width & -width), ffn_dim(dim, 1, None)
    multipliers = [None, *(round(width / hidden, digits) for digits in range(1, 17)), (width + 0.5) / hidden]
    return next((multiple_of, m) for m in multipliers if ffn_dim(dim, multiple_of, m) == width)


def _rope(file, found) -> dict:
    """LlamaConfig's fields of RoPE. Newer files hold them all in rope_parameters, older ones most in rope_scaling."""
    rope = {}
    for field in ("rope_scaling", "rope_parameters"):
        if not isinstance(found.get(field) or {}, dict):
            raise CheckpointError(f"{file}: {field} must be an object or null, found {found[field]!r:.80}")
        rope |= found.get(field) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(f"{file}: rope_type is {kind!r:.80}, expected 'default' or 'llama3' of the whole head")
    scaled = {ours: rope.get(theirs) for ours, theirs in ROPE.items()} if kind == "llama3" else {}
    theta = rope.get("rope_theta", found.get("rope_theta", 10000.0))  # transformers' default, for files without one
    return dict(rope_theta=theta, use_scaled_rope=kind == "llama3", **scaled)


def config_json(config: LlamaConfig, tied: bool) -> dict:
    """The way back: config.json, with RoPE's fields where older and newer versions of transformers look for them."""
    rope = {"rope_type": "llama3" if config.use_scaled_rope else "default"}
    if config.use_scaled_rope:
        rope |= {theirs: getattr(config, ours) for ours, theirs in ROPE.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.use_scaled_rope else None,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "max_position_embeddings": 131072 if config.use_scaled_rope else 8192,
        "tie_word_embeddings": tied,
    }


def open_tensors(folder, config: LlamaConfig):
    """Yield a Tensor for every tensor of a Hugging Face folder, as meta.open_tensors does.

    Raises CheckpointError for an index that names what is not there, a damaged file, every missing, unexpected or
    misshaped tensor (all are named at once), and an lm_head that is not the one that config.json says.
    """
    folder = Path(folder)
    tied = read_json(folder / "config.json").get("tie_word_embeddings") is True
    found = {p.name: p for p in _pieces(folder) if not p.name.endswith("rotary_emb.inv_freq")}
    files = {p.file for p in found.values()}
    head, embeddings = hugging_face_name("output.weight"), hugging_face_name("tok_embeddings.weight")
    check_tensors(
        {name: piece.tensor for name, piece in found.items()},
        config,
        lambda name, shape: (hugging_face_name(name), shape),
        where=files.pop() if len(files) == 1 else folder,
        configuration="config.json",
        optional=(head,) if tied else (),
    )
    to_pairs = lambda w: rows_to_pairs(w, config.head_dim)
    for name, shape in tensor_shapes(config).items():
        theirs = hugging_face_name(name)
        piece = found.get(theirs) or found[embeddings]._replace(name=theirs)
        if tied and name == "output.weight" and head in found and not piece.tensor.equal(found[embeddings].tensor):
            raise CheckpointError(
                f"{piece.file}: {head} differs from {embeddings}, and config.json says that they are one. Is it "
                "another model's config.json?"
            )
        yield Tensor(name, shape, [piece], *([to_pairs] if name.endswith(("wq.weight", "wk.weight")) else []))


def _pieces(folder) -> list[Piece]:
    """All tensors of model.safetensors or of the shards that its index names, memory-mapped, under their own names."""
    from safetensors import safe_open

    index, names = folder / "model.safetensors.index.json", {}
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) and "/" not in n for n in names.values()):
            raise CheckpointError(f"{index}: expected a weight_map of tensors and file names. Copy the file again.")
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        there = sorted(p.name for p in folder.iterdir())
        raise CheckpointError(
            f"{folder}: expected model.safetensors or its index, found {there[:8]}. Download the weights: the files "
            "*.safetensors, not *.bin, which hold pickles."
        )
    pieces = []
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: named in {index.name}, found nothing. Download it again.")
        try:
            opened = safe_open(file, "pt")
            pieces += [Piece(file, name, opened.get_tensor(name)) for name in opened.keys()]
        except Exception as e:  # safetensors' own error, torch's, or the system's
            raise CheckpointError(
                f"{file}: expected a safetensors file, found one that is damaged ({str(e)[:200]}; "
                f"{file.stat().st_size:,} bytes). Delete it and download it again."
            ) from e
    held = {(piece.name, piece.file.name) for piece in pieces}
    if names and (differ := sorted(held ^ set(names.items()))):
        (name, file), promised = differ[0], differ[0] not in held
        is_named, is_there = ("named", "is not in it") if promised else ("not named", "is in it all the same")
        raise CheckpointError(
            f"{folder / file}: {name} is {is_named} in {index.name} and {is_there} ({len(dict(differ))} such). Get "
            "both files again."
        )
    return pieces
