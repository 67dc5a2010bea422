"""metrics.jsonl: one JSON object for each record of a run, written and read in this one place.

JSON has neither NaN nor infinities: they are stored as the strings "nan", "inf" and "-inf", and
read back as numbers. Which records a run writes is decided in `metric_logger`; how a file of such
lines survives damage and full disks, in `step_records`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flame_accel.observe.step_records import (
    StepRecordsFile,
    delete_step_records_after,
    non_finite_to_string,
    number_from_stored,
    read_step_records,
)

METRICS_FILE = "metrics.jsonl"


class MetricsFile(StepRecordsFile[dict[str, float]]):
    """Appends records to a metrics.jsonl. A full or broken disk ends no run.

    Args:
        path: Created by the first record.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _strings_to_numbers)

    def append(self, record: Mapping[str, float]) -> None:
        """Appends one line; logs the first of several failures in a row."""
        self.append_object(non_finite_to_strings(record))


def read_records(existing_file: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl as numbers; a torn last line and damaged ones are left out."""
    return read_step_records(existing_file, _strings_to_numbers)


def non_finite_to_strings(record: Mapping[str, float]) -> dict[str, float | str]:
    """A record with NaN and infinities, which JSON does not have, as strings."""
    return {
        key: non_finite_to_string(value) if isinstance(value, float) else value
        for key, value in record.items()
    }


def _strings_to_numbers(stored: Mapping[str, Any]) -> dict[str, float]:
    """The inverse of `non_finite_to_strings`; raises an error for what is no number."""
    return {key: number_from_stored(value) for key, value in stored.items()}


def delete_records_after(path: Path, step: int) -> None:
    """Deletes the records after `step`, and an incomplete last line, from a metrics.jsonl.

    A file with other damage is kept under another name.
    """
    delete_step_records_after(path, step, _strings_to_numbers)
