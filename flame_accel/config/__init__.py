"""Options of a run: frozen dataclasses, read from flags and run files and checked before all else.

Importing this needs the standard library only. PyYAML is imported when a YAML file is read; torch
is never imported.
"""

from flame_accel.config.errors import ConfigError, UsageError, UserError
from flame_accel.config.hub_options import HubConfig
from flame_accel.config.parsing import load_run_file, parse, parse_or_exit
from flame_accel.config.run_file import to_toml
from flame_accel.config.run_options import (
    CheckpointConfig,
    CommConfig,
    EvaluationConfig,
    JobConfig,
    MetricsConfig,
    ProfilingConfig,
)
from flame_accel.config.schema import Config
from flame_accel.config.training_options import (
    ActivationCheckpointConfig,
    ExperimentalConfig,
    Float8Config,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    dataset_names,
    split_per_dataset_option,
)

__all__ = [
    "ActivationCheckpointConfig",
    "CheckpointConfig",
    "CommConfig",
    "Config",
    "ConfigError",
    "EvaluationConfig",
    "ExperimentalConfig",
    "Float8Config",
    "HubConfig",
    "JobConfig",
    "MetricsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProfilingConfig",
    "TrainingConfig",
    "UsageError",
    "UserError",
    "dataset_names",
    "load_run_file",
    "parse",
    "parse_or_exit",
    "split_per_dataset_option",
    "to_toml",
]
