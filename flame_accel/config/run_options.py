"""Options of what surrounds training: the run folder, logging, profiling, checkpoints, validation.

Options of the model, optimizer, data and parallelism are in `training_options`.
"""

from dataclasses import dataclass, field
from typing import Literal

from flame_accel.config.paths import PathList, PathText


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """The run: where its options come from and where its outputs go."""

    # says where the values came from, not what they are: two runs may be equal without it
    config_file: PathText | None = field(default=None, compare=False)
    """Run file with options: .toml, .yaml, .yml or .json, or the name of a recipe in the package
    (quickstart). Its values replace the defaults; flags replace its values. Inside a run file the
    option only records which file was read."""
    dump_folder: PathText = "exp"
    """Run folder: all outputs are written to it. A run whose folder holds checkpoints resumes from
    the newest one. The default is exp/NAME, where NAME is the name of the run file, with the model
    and data if flags replace them, or of the model and data if there is no run file."""
    description: str = ""
    """Description of the run in words; stored with the run and shown by the trackers."""
    use_for_integration_test: bool = False
    """Add this run file to the integration tests, which then run it."""
    print_args: bool = False
    """Print all options with their values when the run starts, or in job.dry_run."""
    dry_run: bool = field(default=False, compare=False)
    """Train nothing and write nothing: print the options that differ from their defaults (all with
    job.print_args), the parameters by part, the memory per device and the largest micro-batch that
    fits, the schedule, the first rows of data, and the time that the run would take."""
    dry_run_format: Literal["text", "json"] = field(default="text", compare=False)
    """Format of what job.dry_run prints; json is one object."""
    dry_run_gpu: str = field(default="", compare=False)
    """GPU that job.dry_run estimates for, by the name that PyTorch gives it, such as NVIDIA H200.
    Empty: the GPU of this machine, or those that were measured if it has none."""
    gpu_hour_price: float = field(default=0.0, compare=False)
    """Price of an hour of one GPU, in any currency, for the cost that job.dry_run prints; 0 prints
    none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilingConfig:
    """Traces and memory snapshots of individual steps."""

    enable_profiling: bool = False
    """Record traces with the PyTorch profiler. Each rank writes Chrome traces, which Perfetto can
    open."""
    save_traces_folder: PathText = "profile_traces"
    """Folder for the traces, relative to the run folder."""
    profile_freq: int = 10
    """Interval between traces or memory snapshots, in steps."""
    enable_memory_snapshot: bool = False
    """Record snapshots of device memory, also when the device runs out of memory. CUDA only."""
    save_memory_snapshot_folder: PathText = "memory_snapshot"
    """Folder for the memory snapshots, relative to the run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """How often metrics are reported, and to which trackers. metrics.jsonl is always written."""

    log_freq: int = 10
    """Interval between reports, in steps. A report goes to the console, metrics.jsonl and the
    trackers."""
    enable_tensorboard: bool = False
    """Also write the metrics for TensorBoard."""
    disable_color_printing: bool = False
    """Print to the console without colors. Colors are only used on a terminal, and never if the
    environment variable NO_COLOR is set."""
    save_tb_folder: PathText = "tb"
    """Folder for the TensorBoard files, relative to the run folder."""
    rank_0_only: bool = True
    """Write TensorBoard metrics on rank 0 only. If false, every rank also writes its own loss,
    times and memory to a subfolder, which needs metrics.enable_tensorboard."""
    enable_wandb: bool = False
    """Also send the metrics to Weights & Biases."""
    trackers: tuple[str, ...] = ()
    """Further trackers, such as trackio or mlflow. Separated by commas: any that Accelerate has, by
    its name."""
    project: str = "flame_accel"
    """Project of the run in the trackers (MLflow: experiment). WANDB_PROJECT and
    MLFLOW_EXPERIMENT_NAME replace it."""
    wait_seconds: int = 60
    """Longest time to wait for the trackers to take the last records when the run ends, in seconds.
    After a signal it is at most 5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Checkpoints, the weights to start from, and the exported model."""

    enable_checkpoint: bool = True
    """Save checkpoints, and resume from the newest one when the run is started again."""
    folder: PathText = "checkpoint"
    """Folder for the checkpoints, relative to the run folder."""
    interval_type: Literal["step", "seconds"] = "step"
    """Unit of checkpoint.interval. With seconds, a checkpoint is saved at the first step after the
    interval whose metrics are reported (metrics.log_freq)."""
    interval: int = 500
    """Interval between checkpoints: in steps, or in seconds if checkpoint.interval_type says so.
    The last step is always saved."""
    model_weights_only: bool = False
    """Save only the model weights, in checkpoint.export_dtype, at the end of training. If false,
    the last checkpoint is complete (model, optimizer and training state) and can be resumed."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """Dtype of the weights in the exported model, and in the last checkpoint if it holds only
    weights."""
    keep_latest_k: int = 3
    """Number of checkpoints to keep. Older ones are deleted; 0 keeps all."""
    keep_best: str | None = None
    """Metric of the validation by which the best checkpoint is kept: eval/loss, or eval/NAME/loss
    of a set of evaluation.sets. Whenever a validation finds a better model, it is saved; this
    checkpoint is never deleted before the next better one is complete, and best in the checkpoint
    folder is a link to it."""
    best_direction: Literal["auto", "min", "max"] = "auto"
    """Whether the lowest or the highest value of checkpoint.keep_best is the best one. auto is max
    for accuracies and min for other metrics of the package; for your own metrics say which."""
    export_best: bool = False
    """Export the best checkpoint (checkpoint.keep_best) at the end, in place of the last one."""
    max_failures: int = 3
    """Number of saves in a row that may fail (full disk, I/O error) before the run ends: the one
    with this number ends it. The last save of a run must not fail."""
    load_step: int = -1
    """Step of the checkpoint to resume from. -1 takes the newest one."""
    async_mode: Literal["auto", "disabled", "async", "async_with_pinned_mem"] = "auto"
    """Write checkpoints while training goes on, from a copy in host memory: the copy is all that
    training waits for. async_with_pinned_mem copies from a GPU to page-locked memory, which is
    quicker. auto does that on a GPU, unless the copy would take more than 70 % of the available
    host memory; on a CPU training waits, as with disabled, while a checkpoint is written."""
    initial_load_path: PathText | None = None
    """Weights to start from: a checkpoint of another run, or a Hugging Face model with safetensors
    (a folder, or a name on the Hub such as owner/name or owner/name@revision). Used if the run has
    no checkpoint yet."""
    initial_load_model_weights_only: bool = True
    """Load only the weights from checkpoint.initial_load_path. If false, everything in that
    checkpoint is loaded except for checkpoint.exclude_from_loading."""
    accept_differences: tuple[str, ...] = ()
    """Fields of the model config, separated by commas, that may differ between this run and the
    weights that it loads, such as rope_theta for a longer context. `tokenizer` accepts another
    tokenizer. Any other difference is an error."""
    create_seed_checkpoint: bool = False
    """Save the initial weights as a checkpoint of step 0 and exit."""
    exclude_from_loading: tuple[str, ...] = ()
    """Parts of a checkpoint that are not loaded. Applies to the checkpoint of load_step or
    initial_load_path. Any of optimizer, dataloader, train_state, lr_scheduler, separated by commas.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Validation during the run, and the sample that the finished model generates."""

    dataset: PathList | None = None
    """Validation data: one dataset, in the forms that training.dataset takes. None turns validation
    off."""
    dataset_name: str | None = None
    """Name of the dataset's configuration. None takes its default."""
    dataset_split: str | None = None
    """Split of the validation dataset. None takes "validation", or everything if the dataset has no
    splits. If it is the training dataset and has no validation split, part of the documents is held
    out."""
    sets: tuple[str, ...] = ()
    """More validation sets, each NAME=DATASET or NAME=DATASET:SPLIT, in the forms that
    training.dataset takes (one dataset each). In a run file also tables: [evaluation.sets.NAME]
    with dataset, dataset_name, dataset_split, data_dir and data_files. Their metrics are
    eval/NAME/loss and so on."""
    metrics: tuple[str, ...] = ("loss", "perplexity", "bits_per_byte", "accuracy")
    """Metrics of every validation set: loss, perplexity, bits_per_byte, accuracy (of the next
    token), answer_accuracy (of runs of target tokens that are right as a whole), or paths of your
    own modules of the evaluate library (./my_metric). Sets of questions made on the fly
    (synthetic:NAME) have answer_accuracy in place of bits_per_byte."""
    held_out_share: float = 0.01
    """Fraction of the training documents that is held out for validation. Documents are chosen by a
    hash of their text. Used if evaluation.dataset is the training dataset and it has no validation
    split."""
    data_dir: PathText | None = None
    """Folder within the dataset, passed to the datasets library."""
    data_files: PathList | None = None
    """Files or glob patterns within the dataset, passed to the datasets library."""
    interval: int = 0
    """Interval between validations, in steps. The last step is always validated; 0 validates only
    there."""
    batch_size: int = 8
    """Number of rows per device in a validation batch."""
    max_tokens: int = 0
    """Number of tokens of each set to validate on, rounded up to whole documents. 0 takes all."""
    max_context: int = 0
    """Length of the longest context for the loss by position, in tokens, such as 8 times
    training.seq_len: how far the model extrapolates. Each validation takes one more pass over the
    sets, in rows of this length. 0 takes only the rows of the validation itself."""
    carry_state: bool = False
    """Read the rows of evaluation.max_context in pieces of training.seq_len tokens, and carry the
    recurrent state, or the keys and values, from one piece to the next: less memory for the same
    losses. With training.varlen each row is then one document. Models that cannot do it read rows
    in one piece, and the log says so."""
    prompts: PathText | None = None
    """File of prompts that the model continues at each validation, for the log and
    evaluations.jsonl: a text file with one on each line, or JSONL with prompt or messages. None
    generates nothing then."""
    sample_temperature: float = 0.8
    """Temperature of the samples, at validations and at the end of training. 0 takes the likeliest
    token each time; otherwise training.seed decides, so that samples can be compared."""
    prompt: str = ""
    """Prompt for the sample printed at the end of training. If empty, the sample is a new document.
    """
    sample_tokens: int = 128
    """Length of each sample, at validations and at the end of training, in tokens. 0 generates
    none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommConfig:
    """Timeouts and debugging of the communication between processes."""

    init_timeout_seconds: int = 300
    """Timeout for communication during startup and the first step, in seconds. It is one hour while
    checkpoints are checked, models downloaded and data opened."""
    train_timeout_seconds: int = 100
    """Timeout for communication after the first step, in seconds. It is one hour while checkpoints
    are written and during validation."""
    trace_buf_size: int = 20000
    """Number of entries of the NCCL flight recorder, which shows which rank waited for which. On a
    timeout it is written to comm_trace_RANK in the run folder. 0 turns it off."""
