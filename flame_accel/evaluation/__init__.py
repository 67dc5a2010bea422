"""How good a model is: validation loss and metrics, and a sample of generated text."""

from flame_accel.evaluation.evaluator import Evaluator
from flame_accel.evaluation.final_report import (
    try_to_sample_on_main,
    try_to_write_report_on_main,
)
from flame_accel.evaluation.generate import sample_prompt_with_continuation

__all__ = [
    "Evaluator",
    "sample_prompt_with_continuation",
    "try_to_sample_on_main",
    "try_to_write_report_on_main",
]
