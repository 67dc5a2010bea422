"""Which files a folder or pattern means."""

from pathlib import Path

import pytest

from flame_accel.data.sources.files import RUN_FOLDER_FILES, find_files


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


def names(files: list[Path], folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files]


def test_what_a_run_writes_into_the_data_folder_is_no_data(folder: Path) -> None:
    assert names(find_files(str(folder), None, []), folder) == ["a.txt", "sub/b.txt"]
    assert names(find_files(str(folder), None, ["**/*.txt"]), folder) == ["a.txt", "sub/b.txt"]


def test_a_pattern_does_not_reach_into_a_run_folder(folder: Path, monkeypatch) -> None:
    assert names(find_files(f"{folder}/**/*.txt", None, []), folder) == ["a.txt", "sub/b.txt"]
    monkeypatch.chdir(folder)
    assert find_files("**/*.txt", None, []) == [Path("a.txt"), Path("sub/b.txt")]


def test_files_in_a_run_folder_can_still_be_named(folder: Path) -> None:
    assert names(find_files(f"{folder}/run/log.txt", None, []), folder) == ["run/log.txt"]
    found = names(find_files(f"{folder}/run/checkpoint", None, []), folder)
    assert found == ["run/checkpoint/step-1/c.txt"]
    found = names(find_files(f"{folder}/run/*.txt", None, []), folder)
    assert found == ["run/log.txt"]


def test_a_folder_with_only_one_of_the_files_of_a_run_is_data(folder: Path) -> None:
    (folder / "run" / RUN_FOLDER_FILES[1]).unlink()
    assert "run/log.txt" in names(find_files(str(folder), None, ["**/*.txt"]), folder)
