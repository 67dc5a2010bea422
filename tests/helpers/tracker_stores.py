"""What trackers have stored, read without them: the curve of the loss, each of its points.

Every reader takes the files as a tracker left them, and fails if there are several runs. A point is
(step, value); a step that is stored twice is there twice.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = list[tuple[int, float]]
KEY = "train/loss"


def read_tensorboard(run_folder: Path) -> Points:
    """As TensorBoard shows it: without what was purged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_folder / "tb/flame_accel"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(KEY)]


def read_wandb(run_folder: Path) -> Points:
    """The files that `wandb sync` would send: of the same id one only."""
    (file,) = (run_folder / "wandb").glob("offline-run-*/run-*.wandb")
    points = []
    for record in read_wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item for item in record.history.item}
            if KEY in items:
                step = json.loads(items["_step"].value_json)
                points.append((step, json.loads(items[KEY].value_json)))
    return points


def read_wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a log of LevelDB's form, behind a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        # a whole record, or the last part of one
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_trackio(database: Path) -> Points:
    """From the project's database."""
    rows = _query(database, "select run_id, step, metrics from metrics order by step, id")
    assert len({run for run, *_ in rows}) == 1
    return [(step, json.loads(values)[KEY]) for _, step, values in rows]


def read_mlflow(database: Path) -> Points:
    """From the runs that are not deleted."""
    rows = _query(
        database,
        "select run_uuid, step, value from metrics join runs using (run_uuid) "
        f"where lifecycle_stage = 'active' and key = '{KEY}' order by step",
    )
    assert len({run for run, *_ in rows}) == 1
    return [(step, value) for _, step, value in rows]


def read_sample_steps(name: str, run_folder: Path, database: Path) -> list[int]:
    """Steps at which a tracker has generated texts."""
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(run_folder / "tb/flame_accel"))
        accumulator.Reload()
        # this reader purges scalars only; the last of a step is shown
        return sorted({event.step for event in accumulator.Tensors("samples/text_summary")})
    if name == "wandb":
        (file,) = (run_folder / "wandb").glob("offline-run-*/run-*.wandb")
        histories = [each.history for each in read_wandb_records(file) if each.HasField("history")]
        items = [{item.nested_key[0]: item for item in each.item} for each in histories]
        return [json.loads(each["_step"].value_json) for each in items if "samples" in each]
    rows = _query(database, "select step, metrics from metrics order by step")
    return [step for step, values in rows if json.loads(values).get("samples")]


def _query(database: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
