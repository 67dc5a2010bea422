"""evaluations.jsonl: one JSON object for each evaluation of a run, beyond its running curves.

A record is a validation set, a probe or a harness's tasks at one step: its figures, those by
position in the context, and generated texts. Of several records of the same step, kind and name the
last one counts. What is evaluated is decided in `evaluation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from flame_accel.observe.step_records import (
    StepRecordsFile,
    delete_step_records_after,
    non_finite_to_string,
    number_from_stored,
    read_step_records,
)

EVALUATIONS_FILE = "evaluations.jsonl"
EvaluationKind = Literal["set", "probe", "lm_eval"]


class Sample(TypedDict):
    """A text that a model has generated."""

    prompt: str
    text: str
    """The continuation, without the prompt."""


@dataclass(frozen=True)
class Evaluation:
    """What was found of a model at one step; a line of evaluations.jsonl."""

    step: int
    """Number of completed training steps."""
    tokens: int
    """Number of tokens that the model was trained on."""
    kind: EvaluationKind
    name: str
    """Of the set, the probe or the task."""
    metrics: Mapping[str, float]
    by_position: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Means over the targets of a range of positions, by metric. Key `edges` has one number more
    than each of them: range i is from edges[i] up to but excluding edges[i + 1]."""
    samples: Sequence[Sample] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that JSON can hold; NaN and infinities in it become strings."""


class EvaluationsFile(StepRecordsFile[Evaluation]):
    """Appends records to an evaluations.jsonl. A full or broken disk ends no run.

    Args:
        run_folder: The run folder; the file is created by the first record.
    """

    def __init__(self, run_folder: Path) -> None:
        super().__init__(run_folder / EVALUATIONS_FILE, _decode)

    def append(self, evaluation: Evaluation) -> None:
        """Appends one line, in place of one of the same step, kind and name.

        Logs the first of several failures in a row.
        """
        self.append_object(_encode(evaluation))


def read_evaluations(run_folder: Path) -> list[Evaluation]:
    """The evaluations of a run in the order of their lines; empty if there is no file.

    A torn last line and damaged ones are left out, and so are those that a later line replaces.
    """
    path = run_folder / EVALUATIONS_FILE
    if not path.is_file():
        return []
    records = read_step_records(path, _decode)
    last = {(record.step, record.kind, record.name): record for record in records}
    return [r for r in records if last[r.step, r.kind, r.name] is r]


def delete_evaluations_after(run_folder: Path, step: int) -> None:
    """Deletes the evaluations after `step`, and an incomplete last line.

    A file with other damage is kept under another name.
    """
    delete_step_records_after(run_folder / EVALUATIONS_FILE, step, _decode)


def _encode(evaluation: Evaluation) -> dict[str, Any]:
    """The JSON object of an evaluation; what is empty is left out, but for its metrics."""
    required = ("step", "tokens", "kind", "name", "metrics")
    optional = ("by_position", "samples", "details")
    stored = {name: getattr(evaluation, name) for name in required}
    stored |= {name: value for name in optional if (value := getattr(evaluation, name))}
    return _storable(stored)


def _storable(value: Any) -> Any:
    """A JSON value with NaN and infinities as strings, at any depth."""
    if isinstance(value, float):
        return non_finite_to_string(value)
    if isinstance(value, Mapping):
        return {name: _storable(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(entry) for entry in value]
    return value


def _decode(stored: Mapping[str, Any]) -> Evaluation:
    """The inverse of `_encode`; entries of a later version are passed over."""
    kind, name, tokens = stored["kind"], stored["name"], stored["tokens"]
    if kind not in get_args(EvaluationKind) or not isinstance(name, str) or type(tokens) is not int:
        raise ValueError("no evaluation")
    samples = stored.get("samples", [])
    if not all(isinstance(text, str) for s in samples for text in (s["prompt"], s["text"])):
        raise ValueError("a sample is a prompt and a text")
    return Evaluation(
        step=stored["step"],
        tokens=tokens,
        kind=kind,
        name=name,
        metrics=_numbers_by_name(stored["metrics"]),
        by_position={
            metric: [number_from_stored(value) for value in values]
            for metric, values in _named(stored.get("by_position", {})).items()
        },
        samples=[Sample(prompt=s["prompt"], text=s["text"]) for s in samples],
        details=_named(stored.get("details", {})),
    )


def _numbers_by_name(stored: object) -> dict[str, float]:
    return {name: number_from_stored(value) for name, value in _named(stored).items()}


def _named(stored: object) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise TypeError("not a JSON object")
    return stored
