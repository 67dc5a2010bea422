"""A file or folder holds its old content or its new one, whenever the power fails; damage is found.

The power fails by raising at one line of `flame_accel.files` and at all that follow, as if the
process were gone; files that were not synced to the disk lose the second half of their content.
"""

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import pytest

from flame_accel import files
from flame_accel.files import (
    ChecksummedWriter,
    bytes_xxh3,
    describe_files,
    describe_first_damage,
    file_xxh3,
    has_temporary_name,
    rename_and_sync,
    replace_file,
    replace_folder,
    replace_link,
    sync_then_rename_or_swap_with_existing,
    sync_to_disk,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)

OLD, NEW = "old " * 100, "new " * 150
Write = Callable[[Path], None]


class PowerFailure(BaseException):
    """Not caught by anything but the test."""


def inode(path: Path | int) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


class Disk:
    """Records what `files` does to the disk, and fails at the k-th line of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, tuple[int, int]]] = []
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def record_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.log.append(("fsync", inode(descriptor)))

        def record_rename(real: Callable[..., None]) -> Callable[..., None]:
            def renamed(source: Any, target: Any) -> None:
                moved = inode(source)
                real(source, target)
                self.log.append(("rename", moved))

            return renamed

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_rename(replace))
        monkeypatch.setattr(os, "rename", record_rename(rename))

    def synced(self) -> set[tuple[int, int]]:
        return {node for call, node in self.log if call == "fsync"}

    def lose_what_is_not_synced(self, folder: Path, before: set[tuple[int, int]]) -> None:
        """Cut every file in half that was written and not synced."""
        for path in folder.rglob("*"):
            if path.is_file() and inode(path) not in self.synced() | before:
                os.truncate(path, path.stat().st_size // 2)


@contextmanager
def power_failing_at_line(number: int) -> Iterator[None]:
    """Raise at the `number`-th line of `flame_accel.files` and at all later ones."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            lines += 1
            if lines >= number:
                raise PowerFailure
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracer)


def write_new_folder(path: Path) -> None:
    with replace_folder(path) as temporary:
        (temporary / "a").write_text(NEW)
        (temporary / "sub").mkdir()
        (temporary / "sub/b").write_text(NEW)


def swap_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RENAME_EXCHANGE", 1 << 30)


FILE_WRITES: dict[str, Write] = {
    "text": lambda path: write_text_atomically(path, NEW),
    "bytes": lambda path: write_bytes_atomically(path, NEW.encode()),
    "JSON": lambda path: write_json_atomically(path, NEW),
}


def file_content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def folder_content(path: Path) -> dict[str, str] | None:
    if not path.exists():
        return None
    return {
        child.relative_to(path).as_posix(): child.read_text()
        for child in path.rglob("*")
        if child.is_file()
    }


def contents_after_each_power_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Write,
    write: Write,
    read: Callable[[Path], Any],
) -> list[Any]:
    """What is read after a failure at the first line, the second, ...; last, without a failure."""
    contents = []
    for number in range(1, 500):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(folder / "target")
        before = {inode(path) for path in folder.rglob("*")}
        with monkeypatch.context() as patch:
            disk = Disk(patch)
            try:
                with power_failing_at_line(number):
                    write(folder / "target")
                failed = False
            except PowerFailure:
                failed = True
            if failed:
                disk.lose_what_is_not_synced(folder, before)
        others = [path for path in folder.iterdir() if path.name != "target"]
        assert all(has_temporary_name(path) for path in others)
        contents.append(read(folder / "target"))
        if not failed:
            assert not others
            return contents
    raise AssertionError("the write never ends")


@pytest.mark.parametrize("kind", FILE_WRITES)
@pytest.mark.parametrize("old", [OLD, None], ids=["replaces", "creates"])
def test_a_file_is_old_or_new_whenever_the_power_fails(tmp_path, monkeypatch, kind, old):
    def prepare(path: Path) -> None:
        if old is not None:
            path.write_text(old)

    contents = contents_after_each_power_failure(
        tmp_path, monkeypatch, prepare, FILE_WRITES[kind], file_content
    )
    new = contents[-1]
    assert new in (NEW, json.dumps(NEW) + "\n")
    switch = contents.index(new)
    assert contents == [old] * switch + [new] * (len(contents) - switch)
    assert switch > 4


@pytest.mark.parametrize("old", [True, False], ids=["replaces", "creates"])
def test_a_folder_is_old_or_new_whenever_the_power_fails(tmp_path, monkeypatch, old):
    def prepare(path: Path) -> None:
        if old:
            path.mkdir()
            (path / "a").write_text(OLD)
            (path / "c").write_text(OLD)

    contents = contents_after_each_power_failure(
        tmp_path, monkeypatch, prepare, write_new_folder, folder_content
    )
    before, new = {"a": OLD, "c": OLD} if old else None, {"a": NEW, "sub/b": NEW}
    switch = contents.index(new)
    assert contents == [before] * switch + [new] * (len(contents) - switch)
    assert switch > 8


def keep_own_files(relative: PurePath) -> bool:
    return "own" in relative.as_posix()


def write_folder_beside_own_files(path: Path) -> None:
    with replace_folder(path, is_kept=keep_own_files) as temporary:
        (temporary / "a").write_text(NEW)


def test_kept_files_are_in_the_folder_whenever_the_power_fails(tmp_path, monkeypatch):
    def prepare(path: Path) -> None:
        (path / "own").mkdir(parents=True)
        for name in ("a", "b", "own/c"):
            (path / name).write_text(OLD)

    contents = contents_after_each_power_failure(
        tmp_path, monkeypatch, prepare, write_folder_beside_own_files, folder_content
    )
    before, new = {"a": OLD, "b": OLD, "own/c": OLD}, {"a": NEW, "own/c": OLD}
    switch = contents.index(new)
    assert contents == [before] * switch + [new] * (len(contents) - switch)
    assert switch > 8


def test_kept_links_stay_links_and_what_is_written_wins(tmp_path):
    target = tmp_path / "target"
    (target / "folder").mkdir(parents=True)
    (target / "own-file").write_text(OLD)
    (target / "own-link").symlink_to("gone")
    (target / "own-folder").symlink_to("folder")
    (target / "folder/own").write_text(OLD)
    (target / "a").write_text(OLD)
    with replace_folder(target, is_kept=lambda path: True) as temporary:
        (temporary / "a").write_text(NEW)
        (temporary / "own-file").write_text(NEW)
    assert os.readlink(target / "own-link") == "gone"
    assert os.readlink(target / "own-folder") == "folder"
    (target / "own-link").unlink()
    assert folder_content(target) == {"a": NEW, "own-file": NEW, "folder/own": OLD}


def test_a_kept_file_that_cannot_be_linked_is_copied(tmp_path, monkeypatch):
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(f"{source} belongs to another")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "target").mkdir()
    (tmp_path / "target/own").write_text(OLD)
    write_folder_beside_own_files(tmp_path / "target")
    assert folder_content(tmp_path / "target") == {"a": NEW, "own": OLD}


def test_without_a_swap_a_folder_is_old_or_new_or_its_old_content_lies_next_to_it(
    tmp_path, monkeypatch
):
    swap_is_not_supported(monkeypatch)

    def prepare(path: Path) -> None:
        path.mkdir()
        (path / "a").write_text(OLD)

    def read(path: Path) -> Any:
        return folder_content(path) or ("aside", folder_content(path.parent / ".tmp-old-target"))

    contents = contents_after_each_power_failure(
        tmp_path, monkeypatch, prepare, write_new_folder, read
    )
    old, new = {"a": OLD}, {"a": NEW, "sub/b": NEW}
    assert [content for content in contents if content not in (old, new)] == [("aside", old)]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write_text_atomically(tmp_path / "a", NEW)
    file = inode(tmp_path / "a")
    assert disk.log == [("fsync", file), ("rename", file), ("fsync", inode(tmp_path))]


def write_then_rename_folder(path: Path) -> None:
    temporary = path.with_name("unfinished")
    (temporary / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (temporary / name).write_text(NEW)
    sync_then_rename_or_swap_with_existing(temporary, path)


@pytest.mark.parametrize("write", [write_new_folder, write_then_rename_folder])
def test_everything_in_a_folder_is_synced_before_it_is_renamed_and_its_parent_after(
    tmp_path, monkeypatch, write
):
    disk = Disk(monkeypatch)
    write(tmp_path / "made")
    folder = inode(tmp_path / "made")
    inside = [("fsync", inode(path)) for path in (tmp_path / "made").rglob("*")]
    assert len(inside) == 3
    assert sorted(disk.log[:3]) == sorted(inside)
    assert disk.log[3:] == [("fsync", folder), ("rename", folder), ("fsync", inode(tmp_path))]


def test_a_finished_folder_gets_its_name_and_the_one_it_replaces_takes_the_temporary_name(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    sync_then_rename_or_swap_with_existing(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["final"]


def test_a_renamed_folder_is_synced_with_its_parent(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    disk = Disk(monkeypatch)
    rename_and_sync(tmp_path / "a", tmp_path / "b")
    assert disk.log == [("rename", inode(tmp_path / "b")), ("fsync", inode(tmp_path))]


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_an_error_while_writing_keeps_the_old_content_and_leaves_nothing(tmp_path, replace):
    target = tmp_path / "target"
    write_text_atomically(target, OLD) if replace is replace_file else target.mkdir()
    with pytest.raises(OSError, match="disk is full"), replace(target) as temporary:
        (temporary if replace is replace_file else temporary / "a").write_text(NEW)
        raise OSError("disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert file_content(target) == OLD if replace is replace_file else not list(target.iterdir())


def test_what_a_killed_process_left_of_a_folder_is_removed_by_the_next(tmp_path):
    (tmp_path / ".tmp-out").mkdir()
    (tmp_path / ".tmp-out/huge").write_text(OLD)
    write_new_folder(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert folder_content(tmp_path / "out") == {"a": NEW, "sub/b": NEW}


def test_a_folder_is_made_with_its_parents(tmp_path):
    write_new_folder(tmp_path / "a/b/out")
    assert (tmp_path / "a/b/out/a").read_text() == NEW


def test_two_writers_of_one_file_never_mix(tmp_path):
    with replace_file(tmp_path / "a") as first, replace_file(tmp_path / "a") as second:
        assert first != second
        first.write_text(OLD)
        second.write_text(NEW)
    assert (tmp_path / "a").read_text() == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_temporary_names_are_hidden_and_keep_the_suffix(tmp_path):
    with replace_file(tmp_path / "trace.json.gz") as temporary:
        assert has_temporary_name(temporary)
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".json.gz")
        assert temporary.parent == tmp_path
        temporary.touch()
    assert not has_temporary_name(tmp_path / "trace.json.gz")


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text(OLD)
    (tmp_path / "file").symlink_to("real/a")
    (tmp_path / "folder").symlink_to("real")
    write_text_atomically(tmp_path / "file", NEW)
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "real/a").read_text() == NEW
    write_new_folder(tmp_path / "folder")
    assert (tmp_path / "folder").is_symlink()
    assert folder_content(tmp_path / "real") == {"a": NEW, "sub/b": NEW}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text_atomically(pipe, NEW)
    assert os.read(reader, 1 << 16).decode() == NEW
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text(OLD)
    write_text_atomically(tmp_path / "atomic", NEW)
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_is_utf_8_and_json_ends_with_a_newline(tmp_path):
    write_text_atomically(tmp_path / "text", "na\u00efve\n")
    assert (tmp_path / "text").read_bytes() == b"na\xc3\xafve\n"
    write_json_atomically(tmp_path / "json", {"a": [1, None]})
    assert (tmp_path / "json").read_text() == '{\n "a": [\n  1,\n  null\n ]\n}\n'
    write_json_atomically(tmp_path / "json", {"a": 1}, indent=2)
    assert (tmp_path / "json").read_text() == '{\n  "a": 1\n}\n'


def test_content_that_is_no_json_changes_nothing(tmp_path):
    write_json_atomically(tmp_path / "json", 1)
    with pytest.raises(TypeError):
        write_json_atomically(tmp_path / "json", {"a": object()})
    assert (tmp_path / "json").read_text() == "1\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_filesystem_that_cannot_sync_folders_is_no_error_but_a_file_is(tmp_path, monkeypatch):
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, "invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_to_disk(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="invalid argument"):
        sync_to_disk(tmp_path / "a")


def test_a_disk_error_while_syncing_a_folder_is_an_error(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="input/output error"):
        sync_to_disk(tmp_path)


def test_a_file_written_in_blocks_is_described_as_when_it_is_read_and_synced(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    writer = ChecksummedWriter(tmp_path / "a")
    for block in (b"one", b"", b"two" * 1000):
        writer.write(block)
    assert {"a": writer.close()} == describe_files(tmp_path)
    assert disk.log == [("fsync", inode(tmp_path / "a"))]


def test_the_checksum_is_xxh3_of_128_bits(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    # the value of the reference implementation for no input
    assert file_xxh3(tmp_path / "a") == bytes_xxh3(b"") == "99aa06d3014798d86001c324468d497f"


DAMAGES: dict[str, tuple[Write, str, bool]] = {
    "missing": (lambda path: path.unlink(), "sub/a is missing", False),
    "shorter": (lambda path: os.truncate(path, 1), "sub/a has 1 bytes, not 600", False),
    "changed": (
        lambda path: path.write_bytes(path.read_bytes()[::-1]) and None,
        "sub/a has other contents than were written (XXH3-128)",
        True,
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(tmp_path, damage):
    (tmp_path / "sub").mkdir()
    write_text_atomically(tmp_path / "sub/a", NEW)
    write_text_atomically(tmp_path / "b", OLD)
    described = describe_files(tmp_path)
    assert sorted(described) == ["b", "sub/a"]
    assert describe_first_damage(tmp_path, described, compare_checksums=True) is None
    break_file, message, only_in_content = DAMAGES[damage]
    break_file(tmp_path / "sub/a")
    assert describe_first_damage(tmp_path, described, compare_checksums=True) == message
    assert describe_first_damage(tmp_path, described) == (None if only_in_content else message)


def test_a_link_is_replaced_whole_and_never_a_folder(tmp_path: Path):
    link = tmp_path / "best"
    for target in ("a", "b"):
        replace_link(link, target)
        assert os.readlink(link) == target
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        replace_link(tmp_path / "folder", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "folder"]
