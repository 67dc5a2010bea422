"""What survives a restart: atomic checkpoint folders, their contents, and Hugging Face weights."""

from flame_accel.checkpoint.best import find_best_and_link_it, known_best, note_if_best
from flame_accel.checkpoint.contents import (
    RestoredState,
    weights_only_dtype_if_seed_or_last,
)
from flame_accel.checkpoint.failed_saves import FailedSaveError, FailedSaves
from flame_accel.checkpoint.folder import SUPERSEDED, CheckpointFolder
from flame_accel.checkpoint.restore import (
    delete_leftovers_and_rename_newer_if_enabled,
    load_checkpoint_or_raise_user_error,
    restore_starting_point,
)
from flame_accel.checkpoint.run_lock import RunLock, own_run_folder
from flame_accel.checkpoint.save_schedule import SaveSchedule
from flame_accel.checkpoint.saver import CheckpointSaver, check_async_mode
from flame_accel.checkpoint.starting_point import (
    StartingPoint,
    find_or_download_starting_point,
    warn_about_unused_weights,
)
from flame_accel.checkpoint.train_state import BestCheckpoint, TrainState

__all__ = [
    "SUPERSEDED",
    "BestCheckpoint",
    "CheckpointFolder",
    "CheckpointSaver",
    "FailedSaveError",
    "FailedSaves",
    "RestoredState",
    "RunLock",
    "SaveSchedule",
    "StartingPoint",
    "TrainState",
    "check_async_mode",
    "delete_leftovers_and_rename_newer_if_enabled",
    "find_best_and_link_it",
    "find_or_download_starting_point",
    "known_best",
    "load_checkpoint_or_raise_user_error",
    "note_if_best",
    "own_run_folder",
    "restore_starting_point",
    "warn_about_unused_weights",
    "weights_only_dtype_if_seed_or_last",
]
