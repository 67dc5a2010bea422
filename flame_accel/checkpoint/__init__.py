"""What survives a restart: atomic checkpoint folders, their contents, and Hugging Face weights."""

from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf import export_model
from flame_accel.checkpoint.state import RunState, load_checkpoint, save_checkpoint

__all__ = ["CheckpointFolder", "RunState", "export_model", "load_checkpoint", "save_checkpoint"]
