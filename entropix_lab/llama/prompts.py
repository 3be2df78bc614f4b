"""What people hand over as a prompt, as token ids: text, lists, arrays of any library."""

from collections.abc import Sequence

import numpy as np


def to_numpy(x) -> np.ndarray:
    """x as an array on the host: also a tensor of PyTorch's that has a gradient or lives on another device. Raises
    ValueError for lists whose rows differ in length."""
    try:
        return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    except (TypeError, ValueError) as e:
        raise ValueError(f"expected text, or token ids [T] or [B,T], found {type(x).__name__}: {e}") from e


def prompt_rows(model, prompts) -> list[np.ndarray]:
    """Token ids [T] of each prompt, of whatever generate takes as prompts. Raises ValueError for anything else."""
    given = prompts if isinstance(prompts, Sequence) else to_numpy(prompts)
    scalar = lambda x: not isinstance(x, str) and (isinstance(x, int) or getattr(x, "ndim", None) == 0)
    one = isinstance(prompts, str) or scalar(given) or (len(given) > 0 and scalar(given[0]))
    rows = [model.encode(p) for p in ([prompts] if one else given)]
    for row in rows:
        if len(row) != 1:
            raise ValueError(f"expected one row of token ids to a prompt, found an array of {row.shape}")
    return [row[0] for row in rows]


def bucket(n, least) -> int:
    """The power of two from least on that holds n: sizes are padded to it, so that few programs are compiled."""
    return max(least, 1 << (int(n) - 1).bit_length())
