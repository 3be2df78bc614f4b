"""How does a text become token ids?"""

from .tokenizer import SMOLLM2_SPECIAL, Tokenizer, load_tokenizer, rank_lines, why_no_tokenizer
from .tokenizer_json import BYTES
