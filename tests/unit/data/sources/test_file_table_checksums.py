"""A copy of files in the cache of `datasets` that is not what it was is not trained on."""

import json
import os
from pathlib import Path

import datasets
import pytest

from flame_accel.config import UserError
from flame_accel.data.sources import file_table
from flame_accel.data.sources.file_table import CHECKSUMS, copy_files_to_cached_table
from flame_accel.data.sources.record_parsing import RecordColumn


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(9)))
    return [str(path)]


def open_copy(files: list[str]) -> list[object]:
    table = copy_files_to_cached_table(files, RecordColumn("text"), name="data.jsonl")
    return [table[index] for index in range(len(table))]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_copy_with_a_flipped_bit_is_refused_and_made_again_once_deleted(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
):
    whole = open_copy(files)
    assert whole[0] == "document 0" and open_copy(files) == whole
    [recorded] = (tmp_path / "cache").rglob(CHECKSUMS)
    [arrow] = recorded.parent.glob("*.arrow")
    if is_large:
        monkeypatch.setattr(file_table, "MAX_VERIFIED_BYTES", 0)
        os.truncate(arrow, arrow.stat().st_size - 8)
    else:
        content = arrow.read_bytes()
        at = content.index(b"document 0")
        arrow.write_bytes(content[:at] + b"D" + content[at + 1 :])
    with pytest.raises(UserError, match=r"is damaged: .*\.arrow") as error:
        open_copy(files)
    assert f"delete {recorded.parent}" in str(error.value)
    for file in recorded.parent.iterdir():
        file.unlink()
    recorded.parent.rmdir()
    assert open_copy(files) == whole


def test_damaged_checksums_are_no_reason_to_trust_a_copy(files: list[str], tmp_path: Path):
    open_copy(files)
    [recorded] = (tmp_path / "cache").rglob(CHECKSUMS)
    recorded.write_text("[" * 100_000)
    with pytest.raises(UserError, match=f"{CHECKSUMS} cannot be read"):
        open_copy(files)
