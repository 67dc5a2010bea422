"""Records that a start would overwrite are kept, under a number that is free."""

import shutil
from pathlib import Path

import pytest

from flame_accel.files import describe_files
from flame_accel.observe.earlier_records import MOVED, keep_earlier_records


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    for name in MOVED:
        (tmp_path / name).write_text(name)
    return tmp_path


def read_texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_records_of_another_run_are_moved_each_time_to_another_place(run_folder: Path):
    (run_folder / "earlier-1").symlink_to("nowhere")
    for number in (0, 2):
        for name in MOVED:
            (run_folder / name).write_text(f"{number} {name}")
        keep_earlier_records(run_folder, begins_anew=True, goes_back=False)
        assert read_texts(run_folder) == {}
        expected = {name: f"{number} {name}" for name in MOVED}
        assert read_texts(run_folder / f"earlier-{number}") == expected


def test_records_of_steps_that_are_left_are_copied(run_folder: Path):
    before = read_texts(run_folder)
    keep_earlier_records(run_folder, begins_anew=False, goes_back=True)
    assert read_texts(run_folder) == before
    del before["log.txt"], before["trackers.json"]
    assert read_texts(run_folder / "earlier-0") == before


def test_a_run_that_goes_on_or_has_recorded_nothing_keeps_nothing(run_folder: Path):
    keep_earlier_records(run_folder, begins_anew=False, goes_back=False)
    (run_folder / "metrics.jsonl").write_text("")
    keep_earlier_records(run_folder, begins_anew=True, goes_back=False)
    assert not (run_folder / "earlier-0").exists()


def test_where_copies_have_no_room_nothing_has_changed(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    before = describe_files(run_folder)
    copy = shutil.copyfile

    def copy_until_full(source: Path, target: Path) -> None:
        if source.name == "config.toml":
            raise OSError("no space left")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_until_full)
    with pytest.raises(OSError, match="no space left"):
        keep_earlier_records(run_folder, begins_anew=False, goes_back=True)
    assert describe_files(run_folder) == before
