"""How good a model is: validation loss and metrics, and a sample of generated text."""

from flame_accel.evaluation.final_report import sample_and_report
from flame_accel.evaluation.generate import sample_prompt_with_continuation
from flame_accel.evaluation.validate import validate

__all__ = ["sample_and_report", "sample_prompt_with_continuation", "validate"]
