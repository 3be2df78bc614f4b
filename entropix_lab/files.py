"""What the readers of tokenizers and of checkpoints share."""

import json
from pathlib import Path

from .llama.config import CheckpointError


def read_json(file) -> dict:
    """A JSON object. Raises CheckpointError that names the file."""
    try:
        found = json.loads(Path(file).read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{file}: expected a JSON object, found {e}. Copy the file again.") from e
    return found
