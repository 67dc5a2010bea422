"""What survives a restart: atomic checkpoint folders, their contents, and Hugging Face weights."""

from flame_accel.checkpoint.contents import dtype_if_weights_only, save_checkpoint
from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.restore import restore_starting_point
from flame_accel.checkpoint.save_schedule import SaveSchedule
from flame_accel.checkpoint.train_state import TrainState

__all__ = [
    "CheckpointFolder",
    "SaveSchedule",
    "TrainState",
    "dtype_if_weights_only",
    "restore_starting_point",
    "save_checkpoint",
]
