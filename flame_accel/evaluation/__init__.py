"""How good a model is: validation loss and metrics, and a sample of generated text."""

from flame_accel.evaluation.final_report import log_sample_and_write_html_report
from flame_accel.evaluation.generate import sample_prompt_with_continuation
from flame_accel.evaluation.validate import validate

__all__ = ["log_sample_and_write_html_report", "sample_prompt_with_continuation", "validate"]
