"""Files of records: writing them in every form, and reading them back from any position."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from flame_accel.data.sources.file_readers import read_records
from flame_accel.data.sources.record_parsing import RecordColumn

MAX_BYTES = 60


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\u00e9"}]


def read(
    file: str | Path, position: int = 0, *, column: str | None = None, max_bytes: int = MAX_BYTES
) -> list[tuple[Any, int]]:
    return list(read_records(str(file), position, RecordColumn(column, max_bytes)))


def records(file: str | Path, **options: Any) -> list[Any]:
    return [record for record, _ in read(file, **options)]


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.json": bytes,
    "a.ndjson": bytes,
    "a.jsonl.gz": members,
    "a.jsonl.zst": zstd,
}
