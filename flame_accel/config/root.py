"""The root of the configuration: one field per section, in the order of the help and of files."""

from dataclasses import dataclass, field

from flame_accel.config.checkpoint import CheckpointConfig, EvaluationConfig
from flame_accel.config.job import CommConfig, JobConfig, MetricsConfig, ProfilingConfig
from flame_accel.config.model import ModelConfig, OptimizerConfig
from flame_accel.config.scale import ActivationCheckpointConfig, ExperimentalConfig, Float8Config
from flame_accel.config.training import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All options of a run. Components take their own section, never the whole."""

    job: JobConfig = field(default_factory=JobConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    activation_checkpoint: ActivationCheckpointConfig = field(
        default_factory=ActivationCheckpointConfig
    )
    float8: Float8Config = field(default_factory=Float8Config)
    comm: CommConfig = field(default_factory=CommConfig)
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
