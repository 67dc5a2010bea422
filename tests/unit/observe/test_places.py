"""What stands where a run will write is told before it trains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flame_accel.config import Config, UserError
from flame_accel.observe.places import FILES, check_places_of_outputs

ALL_FOLDERS = {
    "checkpoint.folder": "kept/checkpoints",
    "metrics.enable_tensorboard": True,
    "metrics.enable_wandb": True,
    "profiling.enable_profiling": True,
    "profiling.enable_memory_snapshot": True,
}
FOLDERS = ("hf", "kept/checkpoints", "tb", "wandb", "profile_traces", "memory_snapshot")


@pytest.fixture
def check(configured: Callable[..., Config], tmp_path: Path) -> Callable[[], None]:
    (tmp_path / "run").mkdir()
    return lambda: check_places_of_outputs(tmp_path / "run", configured(**ALL_FOLDERS))


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("obstacle", ["file", "link to a file", "link to nowhere"])
def test_what_stands_in_the_place_of_a_folder_is_named(
    check: Callable[[], None], tmp_path: Path, name: str, obstacle: str
):
    place = tmp_path / "run" / name
    place.parent.mkdir(exist_ok=True)
    if obstacle == "file":
        place.touch()
    else:
        target = tmp_path / "target"
        place.symlink_to(target)
        if obstacle == "link to a file":
            target.touch()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=rf"{name} is (not a folder|a link to nowhere)") as error:
        check()
    assert "move it away" in str(error.value) and listing(tmp_path) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("obstacle", ["folder", "link to a folder", "link to nowhere"])
def test_what_stands_in_the_place_of_a_file_is_named(
    check: Callable[[], None], tmp_path: Path, name: str, obstacle: str
):
    place = tmp_path / "run" / name
    if obstacle == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "no/folder" if "nowhere" in obstacle else tmp_path)
    with pytest.raises(UserError, match=rf"{name} is a (folder|link to nowhere)"):
        check()


def test_all_obstacles_are_told_at_once_and_a_parent_that_is_a_file(
    check: Callable[[], None], tmp_path: Path
):
    (tmp_path / "run/kept").touch()
    (tmp_path / "run/report.html").mkdir()
    with pytest.raises(UserError, match=r"report.html is a folder; .*checkpoints is in .*/kept, "):
        check()


def test_links_to_what_is_wanted_and_the_files_of_an_earlier_start_are_none(
    check: Callable[[], None], tmp_path: Path
):
    check()
    (tmp_path / "elsewhere").mkdir()
    for name in FILES:
        (tmp_path / "elsewhere" / name).touch()
        (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "run/hf").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run/kept/checkpoints").mkdir(parents=True)
    check()
    (tmp_path / "run/log.txt").unlink()
    (tmp_path / "run/log.txt").symlink_to("/dev/null")
    check()


@pytest.mark.parametrize("name", ["hf", "metrics.jsonl"])
def test_a_run_with_an_obstacle_changes_nothing(
    train_here: Callable[[list[str]], None],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    name: str,
):
    run = tmp_path / "run"
    run.mkdir()
    if name == "hf":
        (run / name).write_text("mine")
    else:
        (run / name).mkdir()
    with pytest.raises(UserError, match=name):
        train_here(flags())
    assert [path.name for path in run.iterdir()] == [name]
