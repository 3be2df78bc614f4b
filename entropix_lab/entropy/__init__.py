"""How the model hesitates."""

from .inspector import token_html
from .interventions import Run, effects, intervene, sweep
from .metrics import alternatives, attention_metrics, chosen_metrics, collector, entropy_varentropy, lens_metrics
from .trace import Trace, trace_text
