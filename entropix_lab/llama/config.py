"""The model's hyperparameters, under the names of Meta's params.json."""

import re
from dataclasses import MISSING, dataclass, fields

# The numbers that Meta's apply_scaling fixes, which params.json does not hold.
ROPE_SCALING = ("rope_scaling_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_old_context_len")


class CheckpointError(ValueError):
    """Something is wrong with a checkpoint: the message says what, what was expected and found, and how to mend it."""


def dtype_name(dtype) -> str:
    """ "float32", "bfloat16" or "float64" for whatever names one: "bf16" or "fp32", or a dtype of NumPy's, JAX's or
    PyTorch's. Raises ValueError for any other."""
    name = getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")
    name = {"bf16": "bfloat16"}.get(name, re.sub(r"^(f|fp)(?=\d)", "float", name))
    if name not in ("float32", "bfloat16", "float64"):
        raise ValueError(
            "expected the dtype float32, bfloat16 or float64 (in 64-bit JAX, for the truth), found "
            f"{dtype!r}: float16 cannot hold what Llama's layers compute, and integers need scales that official "
            "files do not have. Files in float16 load as float32."
        )
    return name


@dataclass(frozen=True)
class LlamaConfig:
    """The fields of params.json; ``LlamaConfig(**params)`` refuses what it does not know, and drops nothing.

    Defaults are those of Meta's ``ModelArgs`` for fields that official files leave out. The last four, which scale RoPE
    where ``use_scaled_rope`` is true, are not in params.json: Meta's code fixes them to these defaults. Folders of
    Hugging Face say them in config.json, and for Llama 3.2 1B and 3B they say a factor of 32.

    Raises CheckpointError when the numbers do not fit together.
    """

    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    multiple_of: int
    norm_eps: float
    rope_theta: float
    n_kv_heads: int | None = None
    ffn_dim_multiplier: float | None = None
    use_scaled_rope: bool = False
    rope_scaling_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_old_context_len: int = 8192

    def __post_init__(self):
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        whole = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of")
        multiplier = () if self.ffn_dim_multiplier is None else ("ffn_dim_multiplier",)
        for name in (*whole, "norm_eps", "rope_theta", *ROPE_SCALING, *multiplier):
            kind, what = (int, "whole number") if name in whole else (int | float, "number")
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < 2**31:
                raise CheckpointError(f"params.json: {name} must be a positive {what}, found {value!r:.80}")
        D, N, K, scaled = self.dim, self.n_heads, self.n_kv_heads, self.use_scaled_rope
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        for holds, rule, found in (
            (isinstance(scaled, bool), "use_scaled_rope must be true or false", repr(scaled)),
            (D % N == 0, "dim must be a multiple of n_heads", f"{D} and {N}"),
            (N % K == 0, "n_heads must be a multiple of n_kv_heads", f"{N} and {K}"),
            (low < high, "rope_low_freq_factor must be below rope_high_freq_factor", f"{low} and {high}"),
            (self.head_dim % 2 == 0, "dim / n_heads must be even for RoPE", f"{self.head_dim}"),
        ):
            if not holds:
                raise CheckpointError(f"params.json: {rule}, found {found}")

    @classmethod
    def from_params(cls, params: dict) -> "LlamaConfig":
        """A config from the parsed params.json; unknown and missing fields are named in one CheckpointError."""
        known = {f.name: f.default is MISSING for f in fields(cls) if f.name not in ROPE_SCALING}
        unknown = sorted(set(params) - set(known))
        missing = sorted(name for name, required in known.items() if required and name not in params)
        found = ", ".join(f"{what} fields {n}" for what, n in (("unknown", unknown), ("missing", missing)) if n)
        if found:
            raise CheckpointError(
                f"params.json: expected the fields {sorted(known)}, found {found}. Fields of quantised, LoRA or vision "
                "checkpoints are not supported: use the plain text model of the family."
            )
        return cls(**params)

    def params(self) -> dict:
        """The fields of params.json. It cannot say how RoPE is scaled: Meta's code takes its own numbers."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ROPE_SCALING}

    @property
    def in_metas_code(self) -> "LlamaConfig":
        """This config as Meta's code computes it: the scaling of RoPE as fixed there."""
        return LlamaConfig(**self.params())

    @property
    def unlike_metas_code(self) -> str:
        """What Meta's code fixes to another number, "rope_scaling_factor is 32.0 (8.0 in Meta's code)", or ""."""
        metas = self.in_metas_code if self.use_scaled_rope else self
        pairs = ((name, getattr(self, name), getattr(metas, name)) for name in ROPE_SCALING)
        return ", ".join(f"{name} is {x} ({fixed} in Meta's code)" for name, x, fixed in pairs if x != fixed)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer, by the rounding rule of Meta's ``FeedForward.__init__``."""
        return ffn_dim(self.dim, self.multiple_of, self.ffn_dim_multiplier)


def ffn_dim(dim, multiple_of, multiplier):
    hidden = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)
