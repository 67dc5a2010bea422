"""How good a model is: validation loss and metrics, and a sample of generated text."""

from flame_accel.evaluation.generate import sample_text, sample_text_from_export
from flame_accel.evaluation.validate import validate

__all__ = ["sample_text", "sample_text_from_export", "validate"]
