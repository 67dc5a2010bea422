"""Reads what a run folder says of its run, as far as it can be read; changes nothing.

A run that goes on, that was killed, or whose files are damaged has a report all the same: what
cannot be read is named on it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from flame_accel.io_errors import describe_if_io_error
from flame_accel.observe.damaged_records import (
    DamagedRecordError,
    read_json_object,
    read_record_text,
)
from flame_accel.observe.evaluations_file import Evaluation, read_evaluations
from flame_accel.observe.metrics_file import METRICS_FILE, read_records
from flame_accel.observe.report.curves import XAxes, measure_x_axes
from flame_accel.observe.run_end import ENDED_FILE
from flame_accel.observe.skipped_updates import SKIPPED_FILE
from flame_accel.observe.starts import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    OptionValue,
    RunStart,
    read_kept_starts,
    read_options_of_last_start,
)
from flame_accel.observe.step_records import read_step_records

WEIGHTS_FILE = "hf/model.safetensors"
STILL_RUNNING_SECONDS = 600
"""A run without a recorded end is taken to go on if its last record is not older than this."""
MOST_INTEGER = 10**300
"""A larger one, which only damage makes, is no float."""
ReadT = TypeVar("ReadT")


@dataclass(frozen=True)
class RunRecord:
    """What the files of a run folder say."""

    name: str
    """Of the folder, or what tells it from others with the same name."""
    records: Sequence[Mapping[str, float]] = ()
    """Of metrics.jsonl, in the order of their lines."""
    evaluations: Sequence[Evaluation] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    """Of skipped.jsonl: `step`, and `reason` or `rewound_to`."""
    starts: Sequence[RunStart] = ()
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """By `section.option`."""
    options_text: str = ""
    """config.toml."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    ended: Mapping[str, Any] = field(default_factory=dict)
    """`reason`, `step`, `time` and `what`; empty if no end is recorded."""
    num_parameters: int | None = None
    """Of the exported model; None if there is none in one file."""
    is_recent: bool = False
    """Whether the last measurement is so recent that the run may go on."""
    problems: Sequence[str] = ()
    """What could not be read, as sentences."""

    @cached_property
    def keys(self) -> dict[str, None]:
        """All keys of the records, in the order in which they first occur."""
        return dict.fromkeys(key for record in self.records for key in record)

    @cached_property
    def x_axes(self) -> XAxes:
        """Tokens, time and FLOPs at some steps."""
        return measure_x_axes(self.records)

    @property
    def last_step(self) -> int:
        """The last step with a record; 0 without any."""
        return int(self.records[-1]["step"]) if self.records else 0


def read_run(
    run_folder: Path, *, name: str | None = None, end_recorded_in: Path | None = None
) -> RunRecord:
    """Reads a run folder, whatever state it is in.

    Args:
        run_folder: The run folder; it may be empty.
        name: What the run is called; its folder's name if None.
        end_recorded_in: The folder with ended.json; the run folder if None.
    """
    problems: list[str] = []

    ended_file = (end_recorded_in or run_folder) / ENDED_FILE

    def read_or_note(file: str, read: Callable[[], ReadT], otherwise: ReadT) -> ReadT:
        if not (ended_file if file == ENDED_FILE else run_folder / file).is_file():
            return otherwise
        try:
            return read()
        except DamagedRecordError as error:
            problems.append(f"{file} {error}.")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            problems.append(f"{file} cannot be read: {describe_if_io_error(error)}.")
        return otherwise

    metrics = run_folder / METRICS_FILE
    skipped = run_folder / SKIPPED_FILE
    return RunRecord(
        name=name or run_folder.resolve().name,
        records=read_or_note(METRICS_FILE, lambda: _read_sorted_floats(metrics), []),
        evaluations=read_or_note("evaluations.jsonl", lambda: read_evaluations(run_folder), []),
        skipped=read_or_note(SKIPPED_FILE, lambda: read_step_records(skipped, dict), []),
        starts=read_or_note(ENVIRONMENT_FILE, lambda: read_kept_starts(run_folder), []),
        options=read_or_note(CONFIG_FILE, lambda: read_options_of_last_start(run_folder), {}),
        options_text=read_or_note(
            CONFIG_FILE, lambda: read_record_text(run_folder / CONFIG_FILE), ""
        ),
        environment=read_or_note(
            ENVIRONMENT_FILE, lambda: read_json_object(run_folder / ENVIRONMENT_FILE), {}
        ),
        ended=read_or_note(ENDED_FILE, lambda: read_json_object(ended_file), {}),
        num_parameters=read_or_note(
            WEIGHTS_FILE, lambda: count_stored_parameters(run_folder / WEIGHTS_FILE), None
        ),
        is_recent=metrics.is_file()
        and time.time() - metrics.stat().st_mtime < STILL_RUNNING_SECONDS,
        problems=problems,
    )


def count_stored_parameters(safetensors_file: Path) -> int:
    """Elements of all tensors, by the header of the file.

    Raises:
        OSError, ValueError: It cannot be read, or is damaged.
    """
    try:
        with safe_open(safetensors_file, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.offset_keys())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_sorted_floats(metrics_file: Path) -> list[dict[str, float]]:
    """The records by step, also if damage has changed their order or their numbers."""
    records = read_records(metrics_file)
    for record in records:
        for key, value in record.items():
            if isinstance(value, int) and abs(value) > MOST_INTEGER:
                record[key] = math.inf if value > 0 else -math.inf
    return sorted(records, key=lambda record: record["step"])


def read_runs(run_folders: Sequence[Path]) -> list[RunRecord]:
    """Reads several run folders; those of the same name are told apart by their parents' names."""
    paths = [folder.resolve() for folder in run_folders]
    names = []
    for path in paths:
        same = [other for other in paths if other.name == path.name]
        parts = next(
            (
                count
                for count in range(1, len(path.parts))
                if len({other.parts[-count:] for other in same}) == len(same)
            ),
            1,
        )
        names.append("/".join(path.parts[-parts:]))
    return [read_run(path, name=name) for path, name in zip(paths, names, strict=True)]
