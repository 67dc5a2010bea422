"""Files, folders and patterns: which files are meant, and their splits."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from flame_accel.checkpoint import run_lock
from flame_accel.config.errors import UserError
from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.local_files import (
    RUN_FOLDER_FILES,
    RUN_LOCK_FILE,
    list_visible_files_outside_run_folders,
)
from tests.helpers.datasets_on_disk import (
    FILES,
    FULL,
    json_lines,
    opened,
    texts,
    write_one,
    write_parquet,
    write_record_folder,
    write_text_folder,
)
from tests.helpers.runs import SHORT_RUN, read_records


@pytest.mark.parametrize("source", FILES.values(), ids=FILES.keys())
def test_files_are_streamed_as_they_are(tmp_path, source):
    stream = opened(source(tmp_path), streaming=True)
    assert isinstance(stream, FileShards)
    assert texts(stream) == FULL


def test_patterns_and_folders_narrow_a_folder(tmp_path):
    source = write_text_folder(tmp_path)
    assert texts(opened(source, data_files="**/*.txt, b/a.py")) == FULL
    assert texts(opened(source, data_files="c.txt", streaming=True)) == ["third\n"]
    assert texts(opened(source, data_dir="b")) == ["second \U0001f642"]


@pytest.mark.parametrize("streaming", [False, True])
def test_records_named_after_splits_are_these_splits(tmp_path, streaming):
    for name in ("train-00000.jsonl", "train-00001.jsonl", "validation.jsonl", "test/a.jsonl"):
        write_one(Path(name).name, json_lines([{"text": name}]))((tmp_path / name).parent)
    found = {
        split: texts(opened(str(tmp_path), dataset_split=split, streaming=streaming))
        for split in (None, "validation", "test")
    }
    assert found == {
        None: ["train-00000.jsonl", "train-00001.jsonl"],
        "validation": ["validation.jsonl"],
        "test": ["test/a.jsonl"],
    }
    assert texts(opened(str(tmp_path), section="evaluation")) == ["validation.jsonl"]
    # a file that was named is meant
    assert texts(opened(str(tmp_path / "validation.jsonl"))) == ["validation.jsonl"]


@pytest.mark.parametrize("streaming", [False, True])
def test_one_long_text_file_says_what_to_do(tmp_path, streaming):
    source = write_one("books.txt", b"a" * 101)(tmp_path)
    assert texts(opened(source, max_document_bytes=101, streaming=streaming)) == ["a" * 101]
    rule = r"books\.txt: .* 101 bytes, more than training\.max_document_bytes = 100\n.*\.jsonl"
    with pytest.raises(UserError, match=rule):
        opened(source, max_document_bytes=100, streaming=streaming)


def test_parquet_beside_json_is_ambiguous(tmp_path):
    write_record_folder(tmp_path)
    write_parquet(tmp_path)
    with pytest.raises(UserError, match="holds both Parquet and JSON"):
        opened(str(tmp_path))
    assert texts(opened(str(tmp_path), data_files="*.parquet")) == FULL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two texts, and next to them the folder of a run that wrote texts of its own."""
    for name in ("a.txt", "sub/b.txt", "run/log.txt", "run/checkpoint/step-1/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    for name in RUN_FOLDER_FILES:
        (tmp_path / "run" / name).write_text("")
    return tmp_path


def found_in(folder: Path, path: str = "", patterns: Sequence[str] = ()) -> list[str]:
    files = list_visible_files_outside_run_folders(str(folder / path), None, patterns)
    return [file.relative_to(folder).as_posix() for file in files]


def test_what_a_run_writes_into_the_data_folder_is_no_data(folder: Path) -> None:
    assert found_in(folder) == ["a.txt", "sub/b.txt"]
    assert found_in(folder, patterns=["**/*.txt"]) == ["a.txt", "sub/b.txt"]


def test_the_lock_of_a_run_that_begins_in_the_data_folder_is_no_data(folder: Path) -> None:
    assert RUN_LOCK_FILE == run_lock.LOCK_FILE
    (folder / "begins").mkdir()
    (folder / "begins" / RUN_LOCK_FILE).write_text("{}")
    assert found_in(folder) == ["a.txt", "sub/b.txt"]


def test_a_second_start_reads_what_the_first_one_read_with_the_run_folder_in_the_data(
    tmp_path: Path, train_here, flags
) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(f"document {name} " * 40)
    options = {**SHORT_RUN, "training.dataset": tmp_path, "checkpoint.enable_checkpoint": True}
    train_here(flags(**options))
    train_here(flags(**options | {"training.steps": 4}))
    assert [record["step"] for record in read_records(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_pattern_does_not_reach_into_a_run_folder(folder: Path, monkeypatch) -> None:
    assert found_in(folder, "**/*.txt") == ["a.txt", "sub/b.txt"]
    monkeypatch.chdir(folder)
    found = list_visible_files_outside_run_folders("**/*.txt", None, [])
    assert found == [Path("a.txt"), Path("sub/b.txt")]


def test_files_in_a_run_folder_can_still_be_named(folder: Path) -> None:
    assert found_in(folder, "run/log.txt") == ["run/log.txt"]
    assert found_in(folder, "run/checkpoint") == ["run/checkpoint/step-1/c.txt"]
    assert found_in(folder, "run/*.txt") == ["run/log.txt"]


def test_a_folder_with_only_one_of_the_files_of_a_run_is_data(folder: Path) -> None:
    (folder / "run" / RUN_FOLDER_FILES[1]).unlink()
    assert "run/log.txt" in found_in(folder, patterns=["**/*.txt"])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_git_lfs_pointer_is_not_data(tmp_path, name, streaming):
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    )
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"Git LFS pointers.*{name}") as raised:
            opened(str(source), streaming=streaming)
        assert "git lfs pull" in str(raised.value)
