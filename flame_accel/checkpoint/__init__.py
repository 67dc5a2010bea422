"""What survives a restart: atomic checkpoint folders, their contents, and Hugging Face weights."""

from flame_accel.checkpoint.card import describe_training
from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf import export_model
from flame_accel.checkpoint.schedule import SaveSchedule
from flame_accel.checkpoint.start import restore
from flame_accel.checkpoint.state import save_checkpoint, weights_only_dtype
from flame_accel.checkpoint.train_state import TrainState

__all__ = [
    "CheckpointFolder",
    "SaveSchedule",
    "TrainState",
    "describe_training",
    "export_model",
    "restore",
    "save_checkpoint",
    "weights_only_dtype",
]
