"""What leaves a run: the exported model, its code and its card, and what is sent to the Hub.

Weights, config and tokenizer are written in `checkpoint/hf_model`, as for every checkpoint.
"""

from flame_accel.hub.export import export_model, write_export
from flame_accel.hub.model_card import training_table_rows

__all__ = [
    "export_model",
    "training_table_rows",
    "write_export",
]
