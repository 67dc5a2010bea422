"""Files as shards: read from any position, known by their names and sizes."""

from pathlib import Path

import fsspec
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.sources import file_access as access
from tests.helpers.shard_files import file_shards, records, write_files


def test_each_file_is_a_shard_that_is_read_from_any_place(tmp_path: Path) -> None:
    shards = file_shards(write_files(tmp_path))
    assert len(shards) == 3
    for shard in range(3):
        assert records(shards, shard) == [f"{shard} {i}" for i in range(4)]
        for i, (_, position) in enumerate(shards.read(shard, 0)):
            assert records(shards, shard, position) == [f"{shard} {k}" for k in range(i + 1, 4)]


def test_the_fingerprint_is_of_names_and_sizes_wherever_they_lie(tmp_path: Path) -> None:
    here, there = write_files(tmp_path / "a"), write_files(tmp_path / "b")
    fingerprint = file_shards(here).quick_content_fingerprint
    assert file_shards(there).quick_content_fingerprint == fingerprint
    memory = fsspec.filesystem("memory")
    for file in here:
        memory.pipe(f"/far/{Path(file).name}", Path(file).read_bytes())
    far = [f"memory://far/{Path(file).name}" for file in here]
    assert file_shards(far).quick_content_fingerprint == fingerprint
    Path(there[0]).write_text("{}")
    renamed = str(Path(here[2]).rename(tmp_path / "a" / "3.jsonl"))
    others = [
        file_shards(there),
        file_shards([here[0], here[1], renamed]),
        file_shards([here[1], here[0], renamed]),
        file_shards(here),
        file_shards(here[:2]),
        file_shards(here[:2], "content"),
    ]
    assert len({fingerprint, *(shards.quick_content_fingerprint for shards in others)}) == 7


def test_files_that_cannot_be_asked_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(access, "sleep", pauses.append)
    with pytest.raises(UserError, match=r"^none://a\.jsonl: cannot be opened: .*none"):
        _ = file_shards(["none://a.jsonl"]).quick_content_fingerprint
    assert pauses == []
    assert access.stored_size_or_none_if_missing("memory://nowhere/a.jsonl") is None
    monkeypatch.delattr("fsspec.implementations.memory.MemoryFileSystem.info")
    monkeypatch.setattr(
        "fsspec.implementations.memory.MemoryFileSystem.ls", lambda *args, **options: 1 / 0
    )
    with pytest.raises(UserError, match=r"b\.jsonl: cannot be read, tried 6 times: ZeroDivision"):
        _ = file_shards(["memory://b.jsonl"]).quick_content_fingerprint
    assert pauses == [1, 2, 4, 8, 16] * 2
