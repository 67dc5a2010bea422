"""Tables of records in tests, and the files they are made from."""

import json
from pathlib import Path
from typing import Any

import datasets

from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.table import Table

CONVERSATION = [{"role": "user", "content": "a\u00e9"}, {"role": "assistant", "content": "b"}]


def records(table: Table) -> list[Record | Skipped]:
    return [table[index] for index in range(len(table))]


def write_lines(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def of_dataset(values: list[Any], column: str = "text", **options: Any) -> Table:
    return Table("here", datasets.Dataset.from_dict({column: values}), column, **options)
