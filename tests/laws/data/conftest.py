"""Data files of every kind, and the steps of undisturbed runs over them, made once for all laws."""

import json
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flame_accel.data.from_options import (
    build_step_batches,
)
from flame_accel.data.loading.stream_state import merge_rank_states
from tests.helpers.data_runs import (
    KINDS,
    ROWS,
    STEPS,
    TEXTS,
    Case,
    open_run,
    rows_of,
    write_cached,
    write_json_lines,
)


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="package")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three JSON files; a Parquet file for every fourth lane; a token cache."""
    root = tmp_path_factory.mktemp("data")
    texts = TEXTS["a"]
    for i, name in enumerate(("0.jsonl", "1.jsonl.gz", "2.jsonl")):
        write_json_lines(root / "a" / name, texts[20 * i : 20 * i + 20])
    (root / "b").mkdir()
    for i in range(4):
        column = [text or None for text in TEXTS["b"][i::4]]
        pq.write_table(pa.table({"content": column}), root / "b" / f"{i}.parquet")
    write_json_lines(root / "c.jsonl", TEXTS["c"])
    cached = write_cached(root / "c.jsonl", root / "c")
    return {"a": str(root / "a"), "b": str(root / "b"), "c": cached}


@pytest.fixture(scope="package")
def cases(files: dict[str, str]) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case(kind: str) -> Case:
        if kind not in made:
            options = KINDS[kind]
            training, data = open_run(
                seq_len=16, **{**options, "dataset": options["dataset"].format(**files)}
            )
            batches = build_step_batches(training, data, rank=0, world_size=1)
            states, steps = [merge_rank_states([batches.state_dict()])], []
            for step in islice(batches, STEPS):
                steps.append(rows_of(step, ROWS, 16))
                states.append(json.loads(json.dumps(merge_rank_states([batches.state_dict()]))))
            made[kind] = Case(training, data, np.stack(steps), states)
        return made[kind]

    return case
