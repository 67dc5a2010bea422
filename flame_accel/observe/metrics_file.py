"""metrics.jsonl: one JSON object for each record of a run, written and read in this one place.

JSON has neither NaN nor infinities: they are stored as the strings "nan", "inf" and "-inf", and
read back as numbers. Which records a run writes is decided in `metric_logger`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from flame_accel.files import write_text_atomically

METRICS_FILE = "metrics.jsonl"


def append_record(path: Path, record: Mapping[str, float]) -> None:
    """Appends one line with a record to a metrics.jsonl, which is created if it does not exist."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(non_finite_to_strings(record)) + "\n")


def read_records(existing_file: Path) -> list[dict[str, float]]:
    """The complete records of a metrics.jsonl as numbers; a torn last line is left out."""
    lines = existing_file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [_strings_to_numbers(json.loads(line)) for line in lines if line.endswith("}\n")]


def non_finite_to_strings(record: Mapping[str, float]) -> dict[str, float | str]:
    """A record with NaN and infinities, which JSON does not have, as strings."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _strings_to_numbers(stored: Mapping[str, float | str]) -> dict[str, float]:
    """The inverse of `non_finite_to_strings`."""
    return {key: float(value) if isinstance(value, str) else value for key, value in stored.items()}


def delete_records_after(path: Path, step: int) -> None:
    """Deletes the records after `step`, and an incomplete last line, from a metrics.jsonl."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
    write_text_atomically(path, "".join(kept))
