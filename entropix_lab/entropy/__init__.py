"""How the model hesitates."""

from .metrics import attention_metrics, chosen_metrics, collector, entropy_varentropy, lens_entropy
from .trace import Trace, token_html, trace_text
