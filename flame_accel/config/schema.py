"""All options: the root `Config`, and name, type, default and choices of each option.

The dataclasses are the only place where an option is declared; flags, run files, help and the
options page follow from them. Checks are in `values` (one value) and `validation` (all values).
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from flame_accel.config import hub_options, run_options, training_options
from flame_accel.config.paths import PathKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All options of a run, by section. A component takes its own section, never the whole."""

    job: run_options.JobConfig = field(default_factory=run_options.JobConfig)
    model: training_options.ModelConfig = field(default_factory=training_options.ModelConfig)
    profiling: run_options.ProfilingConfig = field(default_factory=run_options.ProfilingConfig)
    optimizer: training_options.OptimizerConfig = field(
        default_factory=training_options.OptimizerConfig
    )
    training: training_options.TrainingConfig = field(
        default_factory=training_options.TrainingConfig
    )
    metrics: run_options.MetricsConfig = field(default_factory=run_options.MetricsConfig)
    checkpoint: run_options.CheckpointConfig = field(default_factory=run_options.CheckpointConfig)
    evaluation: run_options.EvaluationConfig = field(default_factory=run_options.EvaluationConfig)
    hub: hub_options.HubConfig = field(default_factory=hub_options.HubConfig)
    activation_checkpoint: training_options.ActivationCheckpointConfig = field(
        default_factory=training_options.ActivationCheckpointConfig
    )
    float8: training_options.Float8Config = field(default_factory=training_options.Float8Config)
    comm: run_options.CommConfig = field(default_factory=run_options.CommConfig)
    experimental: training_options.ExperimentalConfig = field(
        default_factory=training_options.ExperimentalConfig
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Name and type of an option."""

    name: str
    """section.option."""
    kind: type
    """bool, int, float or str: type of the value, or of each member of a list."""
    default: Any = None
    optional: bool = False
    """Whether None is a value."""
    many: bool = False
    """Whether the value is a tuple."""
    choices: tuple[str, ...] = ()
    """The only allowed values; empty if any value is allowed."""
    path: PathKind | None = None
    """Whether the text is a path, or several; None if it is neither."""

    @property
    def python_type_name(self) -> str:
        """The type in words, such as `int`, `list[str]` or `float | None`."""
        core = f"list[{self.kind.__name__}]" if self.many else self.kind.__name__
        return f"{core} | None" if self.optional else core


@functools.cache
def sections() -> dict[str, type]:
    """The section classes by name, in the order of `Config`."""
    return get_type_hints(Config)


@functools.cache
def options() -> dict[str, Option]:
    """Every option by name, in the order of the dataclasses."""
    declared = {}
    for section, section_class in sections().items():
        hints = get_type_hints(section_class, include_extras=True)
        for member in dataclasses.fields(section_class):
            name = f"{section}.{member.name}"
            declared[name] = option_from_annotation(name, hints[member.name], member.default)
    return declared


def option_from_annotation(name: str, annotation: Any, default: Any) -> Option:
    """The option that a field with this type and default declares."""
    optional = NoneType in get_args(annotation)
    if optional:
        [annotation] = [member for member in get_args(annotation) if member is not NoneType]
    many = get_origin(annotation) is tuple
    if many:
        annotation = get_args(annotation)[0]
    path = None
    if get_origin(annotation) is Annotated:
        annotation, path = get_args(annotation)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return Option(
        name=name,
        kind=str if choices else annotation,
        default=default,
        optional=optional,
        many=many,
        choices=choices,
        path=path,
    )


def option_value(config: Config, name: str) -> Any:
    """The value of the option `section.option` in a configuration."""
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)
