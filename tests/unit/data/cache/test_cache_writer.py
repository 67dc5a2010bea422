"""A token cache holds the same bytes however often its writing was interrupted."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cache import (
    cache_writer,
    file_format,
    shard_writer,
)
from flame_accel.data.cache.cache_progress import CacheProgress
from flame_accel.data.cache.cache_writer import (
    CacheOrigin,
    write_cache_unless_finished,
)
from flame_accel.data.documents import Skipped
from tests.helpers.small_caches import (
    ORIGIN,
    ByteEncoder,
    RecordList,
    make_records,
    open_token_cache,
    read_files,
)


def die_after(chunks: int, folder: Path, processes: int) -> None:
    def report(progress: CacheProgress) -> None:
        nonlocal chunks
        chunks -= 1
        if not chunks:
            os.kill(os.getpid(), signal.SIGKILL)

    write_cache_unless_finished(
        make_records(), ByteEncoder(), folder, ORIGIN, num_processes=processes, on_progress=report
    )


@pytest.mark.parametrize(("processes", "chunks"), [(1, 1), (1, 12), (2, 20)])
def test_a_killed_prepare_resumes_to_the_same_bytes(
    cache: Path, tmp_path: Path, processes: int, chunks: int
):
    folder = tmp_path / "killed"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=die_after, args=(chunks, folder, processes))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(UserError, match="not finished"):
        open_token_cache(folder)
    reports: list[CacheProgress] = []
    write_cache_unless_finished(
        make_records(), ByteEncoder(), folder, ORIGIN, on_progress=reports.append
    )
    assert (reports[0].resumed_documents > 0) == (chunks > 1)
    assert reports[-1].documents == reports[-1].total_documents == len(make_records())
    assert read_files(folder) == read_files(cache)


def test_a_finished_cache_is_left_alone(cache: Path):
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert not write_cache_unless_finished(make_records(), ByteEncoder(), cache, ORIGIN)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    (cache / "shard-00001.tokens").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged: shard-00001\.tokens has 0 bytes"):
        write_cache_unless_finished(make_records(), ByteEncoder(), cache, ORIGIN)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_identity": "other"}, "tokenizer was bytes, now other"),
        ({"add_bos": True}, "add_bos was False, now True"),
        ({"source": {"dataset": "another"}}, "dataset was some, now another"),
        ({}, "fingerprint was"),
    ],
    ids=["tokenizer", "bos", "options", "texts"],
)
def test_a_cache_of_something_else_is_refused_or_replaced(
    tmp_path: Path, finished: bool, change: dict[str, Any], said: str
):
    folder, texts = tmp_path / "cache", make_records()

    def stop(progress: CacheProgress) -> None:
        if not finished:
            raise UserError("stopped")

    try:
        write_cache_unless_finished(texts, ByteEncoder(), folder, ORIGIN, on_progress=stop)
    except UserError:
        assert not finished
    origin = {name: getattr(ORIGIN, name) for name in ORIGIN.__slots__} | change
    if not change:
        texts[3] = "another text"
    with pytest.raises(UserError, match=said) as error:
        write_cache_unless_finished(texts, ByteEncoder(), folder, CacheOrigin(**origin))
    assert "--overwrite" in str(error.value)
    assert write_cache_unless_finished(
        texts, ByteEncoder(), folder, CacheOrigin(**origin), overwrite=True
    )
    write_cache_unless_finished(texts, ByteEncoder(), tmp_path / "fresh", CacheOrigin(**origin))
    assert read_files(folder) == read_files(tmp_path / "fresh")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"other files: thesis\.tex"):
            write_cache_unless_finished(
                make_records(), ByteEncoder(), tmp_path, ORIGIN, overwrite=overwrite
            )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_prepare_the_same_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache_writer, "LOCK_TIMEOUT_SECONDS", 0.01)
    with (
        FileLock(tmp_path / file_format.LOCK),
        pytest.raises(UserError, match="another process"),
    ):
        write_cache_unless_finished(make_records(), ByteEncoder(), tmp_path, ORIGIN)


def test_a_full_disk_is_reported_and_the_work_resumes_later(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = shard_writer.ChecksummedWriter
    with monkeypatch.context() as patched:
        full = "shard-00002.tokens"
        patched.setattr(
            shard_writer,
            "ChecksummedWriter",
            lambda path: real(Path("/dev/full") if path.name == full else path),
        )
        with pytest.raises(UserError, match="no space left") as error:
            write_cache_unless_finished(make_records(), ByteEncoder(), tmp_path / "full", ORIGIN)
    assert str(tmp_path / "full") in str(error.value)
    reports: list[CacheProgress] = []
    write_cache_unless_finished(
        make_records(), ByteEncoder(), tmp_path / "full", ORIGIN, on_progress=reports.append
    )
    assert reports[0].resumed_documents > 0
    assert read_files(tmp_path / "full") == read_files(cache)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_cache_unless_finished(
            make_records(), ByteEncoder(), tmp_path / "file" / "cache", ORIGIN
        )


def test_records_that_change_during_the_work_are_noticed(tmp_path: Path):
    texts = make_records()

    def change(progress: CacheProgress) -> None:
        texts[-1] = "not what it was"

    with pytest.raises(UserError, match="changed while"):
        write_cache_unless_finished(
            texts, ByteEncoder(), tmp_path / "c", ORIGIN, on_progress=change
        )


def test_data_without_text_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no text in any of the 3"):
        write_cache_unless_finished(
            RecordList([Skipped("empty")] * 3), ByteEncoder(), tmp_path / "c", ORIGIN
        )


def test_bad_records_stop_the_work_or_keep_their_index(tmp_path: Path):
    texts = make_records()
    texts[100], texts[200] = (Skipped("damaged", f"line {i}", "not UTF-8") for i in (100, 200))

    def write(limit: int | None, **options: Any) -> None:
        policy = SkipPolicy(limit)
        write_cache_unless_finished(
            texts, ByteEncoder(), tmp_path / "c", ORIGIN, policy=policy, **options
        )

    with pytest.raises(UserError, match="line 100: not UTF-8"):
        write(None)
    with pytest.raises(UserError, match=r"1 bad records are more than training\.max_bad_records 0"):
        write(0)
    with pytest.raises(UserError, match="record 7: no text"):
        write(0, overwrite=True)
    # two empty ones and two damaged; what the earlier attempts have made is counted again
    with pytest.raises(UserError, match=r"more than training\.max_bad_records 3"):
        write(3, num_processes=2)
    write(4)
    documents = open_token_cache(tmp_path / "c")
    assert documents[100] == texts[100]
    assert documents[200] == texts[200]
    assert documents[7] == Skipped("empty", f"{tmp_path / 'c'}, document 7")
    assert len(documents) == len(texts)


@pytest.mark.parametrize("number", range(1, 8))
def test_an_interrupted_overwrite_never_leaves_half_a_cache_that_opens(
    cache: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    origin = replace(ORIGIN, add_bos=True)
    remove, removals = Path.unlink, iter(range(1, 1000))

    def remove_until(path: Path, missing_ok: bool = False) -> None:
        if next(removals) >= number:
            raise RuntimeError("killed")
        remove(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(Path, "unlink", remove_until)
        write_cache_unless_finished(make_records(), ByteEncoder(), cache, origin, overwrite=True)
    if number == 1:
        assert len(open_token_cache(cache)) == len(make_records())
    else:
        with pytest.raises(UserError, match=r"has no flame_accel_tokens|not finished"):
            open_token_cache(cache)
    assert write_cache_unless_finished(make_records(), ByteEncoder(), cache, origin, overwrite=True)
    assert len(open_token_cache(cache, add_bos=True)) == len(make_records())
