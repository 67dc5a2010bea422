"""How good a model is: validation loss and metrics, and a sample of generated text."""

from flame_accel.evaluation.final_report import sample_export_and_write_report
from flame_accel.evaluation.generate import sample_prompt_with_continuation
from flame_accel.evaluation.validate import validate

__all__ = ["sample_export_and_write_report", "sample_prompt_with_continuation", "validate"]
