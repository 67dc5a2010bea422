"""What leaves a run: the exported model, its code and its card, and what is sent to the Hub.

Weights, config and tokenizer are written in `checkpoint/hf_model`, as for every checkpoint.
"""

from flame_accel.hub.export import export_model, write_export
from flame_accel.hub.model_card import ModelOrigin, origin_of_checkpoint, write_model_card
from flame_accel.hub.remote_code import write_remote_code
from flame_accel.hub.sources import describe_sources
from flame_accel.hub.uploads import HubUploads

__all__ = [
    "HubUploads",
    "ModelOrigin",
    "describe_sources",
    "export_model",
    "origin_of_checkpoint",
    "write_export",
    "write_model_card",
    "write_remote_code",
]
