"""What survives a restart: atomic checkpoint folders, their contents, and Hugging Face weights."""

from flame_accel.checkpoint.contents import save_checkpoint, weights_only_dtype_or_none
from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.restore import (
    StartingPoint,
    find_starting_point,
    restore_starting_point,
    set_aside_unused_checkpoints,
)
from flame_accel.checkpoint.save_schedule import SaveSchedule
from flame_accel.checkpoint.train_state import TrainState

__all__ = [
    "CheckpointFolder",
    "SaveSchedule",
    "StartingPoint",
    "TrainState",
    "find_starting_point",
    "restore_starting_point",
    "save_checkpoint",
    "set_aside_unused_checkpoints",
    "weights_only_dtype_or_none",
]
