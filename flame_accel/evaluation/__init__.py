"""How good a model is: validation loss and its derived figures, and a sample of what it writes."""

from flame_accel.evaluation.generate import sample_exported, sample_text
from flame_accel.evaluation.validate import validate

__all__ = ["sample_exported", "sample_text", "validate"]
