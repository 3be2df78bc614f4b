"""The model's hyperparameters, under the names of Meta's params.json."""

import re
from dataclasses import MISSING, dataclass, fields


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

    Defaults are those of Meta's ``ModelArgs`` for fields that official files leave out. ``rope_scaling_factor`` is
    not in params.json: Meta's code fixes it to 8 (read only where ``use_scaled_rope`` is true).

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

    def __post_init__(self):
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"params.json: {name} must be a positive whole number, found {value!r}")
        for name in ("norm_eps", "rope_theta", "rope_scaling_factor"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise CheckpointError(f"params.json: {name} must be a positive number, found {value!r}")
        if not isinstance(self.use_scaled_rope, bool):
            raise CheckpointError(f"params.json: use_scaled_rope must be true or false, found {self.use_scaled_rope!r}")
        for a, b in (("dim", "n_heads"), ("n_heads", "n_kv_heads")):
            if getattr(self, a) % getattr(self, b):
                raise CheckpointError(
                    f"params.json: {a} must be a multiple of {b}, found {getattr(self, a)} and {getattr(self, b)}"
                )
        if self.head_dim % 2:
            raise CheckpointError(f"params.json: dim / n_heads must be even for RoPE, found {self.head_dim}")

    @classmethod
    def from_params(cls, params: dict) -> "LlamaConfig":
        """A config from the parsed params.json; unknown and missing fields are named in one CheckpointError."""
        known = {f.name: f.default is MISSING for f in fields(cls) if f.name != "rope_scaling_factor"}
        unknown = sorted(set(params) - set(known))
        missing = sorted(name for name, required in known.items() if required and name not in params)
        if unknown or missing:
            found = ", ".join(
                ([f"unknown fields {unknown}"] if unknown else []) + ([f"missing fields {missing}"] if missing else [])
            )
            raise CheckpointError(
                f"params.json: expected the fields {sorted(known)}, found {found}. Fields of quantised, LoRA or vision "
                "checkpoints are not supported: use the plain text model of the family."
            )
        return cls(**params)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer, by the rounding rule of Meta's ``FeedForward.__init__``."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of)
