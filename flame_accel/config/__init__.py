"""Options of a run: frozen dataclasses, read from flags and run files, checked before all else.

Importing this needs the standard library only; PyYAML and tyro are imported where a YAML file is
read or help is drawn, torch nowhere.
"""

from flame_accel.config.checkpoint import CheckpointConfig, EvaluationConfig
from flame_accel.config.describe import OptionDescription, describe_options
from flame_accel.config.errors import ConfigError, Problem, UserError
from flame_accel.config.job import CommConfig, JobConfig, MetricsConfig, ProfilingConfig
from flame_accel.config.mixture import dataset_names, entries
from flame_accel.config.model import ModelConfig, OptimizerConfig
from flame_accel.config.parsing import load_file, parse, parse_or_exit
from flame_accel.config.root import Config
from flame_accel.config.scale import ActivationCheckpointConfig, ExperimentalConfig, Float8Config
from flame_accel.config.toml import to_toml
from flame_accel.config.training import TrainingConfig

__all__ = [
    "ActivationCheckpointConfig",
    "CheckpointConfig",
    "CommConfig",
    "Config",
    "ConfigError",
    "EvaluationConfig",
    "ExperimentalConfig",
    "Float8Config",
    "JobConfig",
    "MetricsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OptionDescription",
    "Problem",
    "ProfilingConfig",
    "TrainingConfig",
    "UserError",
    "dataset_names",
    "describe_options",
    "entries",
    "load_file",
    "parse",
    "parse_or_exit",
    "to_toml",
]
