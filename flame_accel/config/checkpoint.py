"""Options of what a run keeps (checkpoints, exported model) and how it is judged (validation)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """What survives a restart, and what is handed back at the end."""

    enable_checkpoint: bool = True
    """Save checkpoints, and go on from the newest one when the run starts again."""
    folder: str = "checkpoint"
    """Folder of the checkpoints, inside the run folder: job.dump_folder/checkpoint.folder."""
    interval_type: Literal["step", "seconds"] = "step"
    """Unit of checkpoint.interval. An interval in seconds ends at the first step after it that is
    reported (metrics.log_freq)."""
    interval: int = 500
    """Time between two checkpoints, in steps or seconds as checkpoint.interval_type says. The end
    of the run is always saved."""
    model_weights_only: bool = False
    """Save only the model's weights, in checkpoint.export_dtype, at the end of training. False
    saves the full checkpoint: model, optimizer and training state, from which training can go on.
    """
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """Precision of the weights in the model that is exported when training completes, and in the
    last checkpoint where that holds only weights."""
    keep_latest_k: int = 3
    """Keep this many of the newest checkpoints and delete older ones. 0 keeps all."""
    load_step: int = -1
    """Step of the checkpoint to go on from. -1 takes the newest one."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Write checkpoints while training goes on; async_with_pinned_mem copies to pinned memory."""
    initial_load_path: str | None = None
    """Checkpoint of another run, or Hugging Face model (a folder or a name on the Hub), to start
    from when the run has no checkpoint of its own."""
    initial_load_model_weights_only: bool = True
    """Load only the weights from checkpoint.initial_load_path. False goes on from a checkpoint
    there with everything that it holds, but for checkpoint.exclude_from_loading."""
    create_seed_checkpoint: bool = False
    """Save the initial weights as a checkpoint of step 0 and end."""
    exclude_from_loading: tuple[str, ...] = ()
    """Parts that are not loaded of the checkpoint that load_step or initial_load_path names:
    optimizer, dataloader, train_state, lr_scheduler; several are separated by commas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Validation during the run, and the sample that the finished model writes."""

    dataset: str | None = None
    """Validation data, in the forms of training.dataset but only one. None means no validation."""
    dataset_name: str | None = None
    """Name of the dataset's configuration; None takes its default."""
    dataset_split: str | None = None
    """Split of the dataset; None takes "validation", and all of a dataset without splits. Of the
    training data itself, without such a split, a share of the documents is held out."""
    held_out_share: float = 0.01
    """Share of the training documents that are held out for validation, by a hash of their text,
    where evaluation.dataset names the training data and it has no validation split."""
    data_dir: str | None = None
    """Folder within the dataset, passed on to datasets."""
    data_files: str | None = None
    """Files or patterns within the dataset, passed on to datasets."""
    interval: int = 0
    """Validate every so many steps, and at the end. 0 validates only at the end."""
    batch_size: int = 8
    """Rows per device in a validation batch."""
    max_tokens: int = 0
    """Validate on whole documents until there are so many tokens. 0 takes all."""
    prompt: str = ""
    """Text that the printed sample goes on from. Empty starts a new document."""
    sample_tokens: int = 128
    """Length of the sample printed at the end, in tokens. 0 prints none."""
