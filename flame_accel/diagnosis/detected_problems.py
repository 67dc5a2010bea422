"""Which of the known problems a machine has, and whether they concern a model.

The table of problems is in `known_problems`.
"""

from collections.abc import Set
from typing import TYPE_CHECKING, NamedTuple

from flame_accel.diagnosis.known_problems import PROBLEMS, ProblemCheck
from flame_accel.diagnosis.machine import Machine

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class DetectedProblem(NamedTuple):
    """A known problem that this machine has."""

    name: str
    blocks_training: bool
    """Whether training is impossible; else it is a warning."""
    description: str
    remedy: str


def detect_known_problems(
    machine: Machine,
    *,
    model_parts: Set[str] = frozenset(),
    model_config: "PreTrainedConfig | None" = None,
) -> list[DetectedProblem]:
    """Detects the known problems of a machine; those that prevent training come first.

    Args:
        machine: Facts about the machine.
        model_parts: Layers and operators of fla that a model uses; empty for problems of every
            model.
        model_config: Config of that model.
    """
    findings = [
        DetectedProblem(
            problem.name, problem.blocks_training, problem.description(machine), problem.remedy
        )
        for problem in PROBLEMS
        if _concerns_model(problem, model_parts, model_config) and problem.applies(machine)
    ]
    return sorted(findings, key=lambda finding: not finding.blocks_training)


def _concerns_model(
    problem: ProblemCheck, model_parts: Set[str], model_config: "PreTrainedConfig | None"
) -> bool:
    """Whether a row concerns every model, or a part that this model uses and its config enables."""
    return problem.parts is None or any(
        # a config without the field always uses the part
        switch is None or getattr(model_config, switch, True)
        for part, switch in problem.parts.items()
        if part in model_parts
    )
