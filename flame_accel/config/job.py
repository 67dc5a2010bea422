"""Options of the run as a whole: its folder, what it reports, how its processes wait."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """The run: where its options come from and where its outputs go."""

    # says where the values came from, not what they are: two runs may be equal without it
    config_file: str | None = field(default=None, compare=False)
    """Run file (.toml, .yaml, .yml or .json), or the name of a recipe that ships
    (quickstart); its values replace the defaults, and flags replace the values of the file. Inside
    a run file the option only records where the values came from."""
    dump_folder: str = "exp"
    """Run folder: every output of the run goes there. A run whose folder holds checkpoints goes on
    from them."""
    description: str = ""
    """Description of the run, in words; kept with the run and shown by the trackers."""
    use_for_integration_test: bool = False
    """Add this run file to the integration tests: the test suite runs it."""
    print_args: bool = False
    """Print all options with their values to the terminal when the run starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilingConfig:
    """Where the time and the memory of a step go."""

    enable_profiling: bool = False
    """Record traces with the PyTorch profiler: Chrome traces, one a rank, which Perfetto opens."""
    save_traces_folder: str = "profile_traces"
    """Folder of the traces, inside the run folder."""
    profile_freq: int = 10
    """Record a trace, or a memory snapshot, every so many steps."""
    enable_memory_snapshot: bool = False
    """Record snapshots of the device memory, also where it runs out. CUDA only."""
    save_memory_snapshot_folder: str = "memory_snapshot"
    """Folder of the memory snapshots, inside the run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """What the run reports, how often and to whom. metrics.jsonl is written in any case."""

    log_freq: int = 10
    """Report every so many steps, to the console, metrics.jsonl and the trackers."""
    enable_tensorboard: bool = False
    """Also write the metrics for TensorBoard."""
    disable_color_printing: bool = False
    """Print to the console without colours. Only a terminal gets any, and none with NO_COLOR."""
    save_tb_folder: str = "tb"
    """Folder of the TensorBoard files, inside the run folder."""
    rank_0_only: bool = True
    """Only rank 0 writes TensorBoard metrics; false: every rank also writes its own loss, times and
    memory into a subfolder. Needs metrics.enable_tensorboard."""
    enable_wandb: bool = False
    """Also send the metrics to Weights & Biases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommConfig:
    """How long the processes of a run wait for each other."""

    init_timeout_seconds: int = 300
    """Longest wait for another process, in seconds, while the run starts and in its first step."""
    train_timeout_seconds: int = 100
    """Longest wait for another process, in seconds, after the first step; an hour while
    checkpoints are written and in validation."""
    trace_buf_size: int = 20000
    """Entries of the flight recorder, which shows who waited for whom: NCCL writes it to files
    comm_trace_RANK of the run folder when a wait is over. 0 turns it off."""
