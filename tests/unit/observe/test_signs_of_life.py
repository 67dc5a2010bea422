"""A rank's file: the others read what it does, and a full disk is no sign of death."""

import os
import time
from pathlib import Path

import pytest

from flame_accel.observe.signs_of_life import RECORD_BYTES, SignsOfLife


def test_ranks_read_what_the_others_do_until_they_have_ended(tmp_path: Path) -> None:
    first, second = (SignsOfLife(tmp_path, rank) for rank in range(2))
    first.clear()
    assert first.read(1) is None and first.touched_at(1) is None
    shown = second.show(3, "save")
    assert first.read(1) == shown and (shown.step, shown.phase) == (3, "save")
    assert shown.pid == os.getpid() and not shown.has_given_up
    second.show(4, "data", has_given_up=True)
    # overwritten in place
    assert second.path.stat().st_size == RECORD_BYTES
    read = first.read(1)
    assert read is not None and read.step == 4 and read.has_given_up
    assert not first.is_given_up()
    second.give_up()
    assert first.is_given_up()
    second.remove()
    assert first.read(1) is None and first.folder.is_dir()


def test_a_record_that_is_being_written_is_none(tmp_path: Path) -> None:
    signs = SignsOfLife(tmp_path, 0)
    signs.clear()
    signs.path.write_bytes(b'[0, "host"')
    assert signs.read(0) is None


def test_an_unwritable_record_is_still_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = SignsOfLife(tmp_path, 0)
    signs.clear()
    signs.show(1, "data")
    before = signs.touched_at(0)

    def fail(*_: object) -> None:
        raise OSError(28, "no space left on device")

    time.sleep(0.01)
    signs.show(1, "data")
    assert signs.touched_at(0) != before
    monkeypatch.setattr(os, "pwrite", fail)
    signs.show(2, "data")
    signs.give_up()
    signs.clear()
    assert not signs.is_given_up() and signs.read(0) is None
