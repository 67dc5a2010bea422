"""Three files of JSON lines as shards."""

import json
from pathlib import Path
from typing import Any

from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.record_parsing import RecordColumn
from flame_accel.data.stages import Shards


def records(shards: Shards, shard: int, position: int = 0) -> list[Any]:
    return [record for record, _ in shards.read(shard, position)]


def write_files(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    for shard in range(3):
        lines = [json.dumps({"text": f"{shard} {i}"}) for i in range(4)]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return [str(folder / f"{shard}.jsonl") for shard in range(3)]


def file_shards(files: list[str], column: str | None = None) -> FileShards:
    return FileShards("mine", files, RecordColumn(column, 1000))
