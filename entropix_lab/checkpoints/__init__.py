"""Files to a Model: the formats of weights, and downloads."""

from .find import find_checkpoint, read_tensors
from .load import load_and_convert_weights, load_config, load_model
from .sums import verify_checksums
from .tensors import tensor_shapes
from .verification import Verification, verify
from .write import save_hugging_face, save_official, write_checkpoint, write_random_checkpoint
