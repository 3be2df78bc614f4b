"""How the model hesitates."""

from .metrics import alternatives, attention_metrics, chosen_metrics, collector, entropy_varentropy, lens_metrics
from .trace import Trace, token_html, trace_text
