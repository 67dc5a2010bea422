"""Caches go where they can be written, and stay where their packages put them if they can."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from flame_accel.cache_folders import CACHES, ROOTS, redirect_unwritable_caches


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without anything in it, in an environment that names no cache."""
    for variable in [*CACHES, *ROOTS, "HF_TOKEN_PATH", "RANK"]:
        # set first, so that what is set later is taken back
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def make_unwritable(home: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "a file":
        home.rmdir()
        home.touch()
    elif fault == "in no file system":
        monkeypatch.setenv("HOME", "/proc/nowhere")
    elif fault == "not known":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", os.fspath)
    else:
        real = tempfile.TemporaryFile

        def refuse(*, dir: Path):
            if Path(dir).is_relative_to(home):
                raise OSError("read-only or full")
            return real(dir=dir)

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def cache_variables() -> dict[str, str]:
    return {variable: os.environ[variable] for variable in CACHES if variable in os.environ}


@pytest.mark.parametrize("fault", ["a file", "in no file system", "not known", "read-only"])
def test_every_cache_of_an_unwritable_home_is_replaced(home, monkeypatch, capsys, fault):
    make_unwritable(home, monkeypatch, fault)
    redirect_unwritable_caches()
    assert cache_variables().keys() == CACHES.keys()
    for folder in map(Path, cache_variables().values()):
        (folder / "file").touch()
        assert folder.is_relative_to(tempfile.gettempdir())
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be written to" in line and tempfile.gettempdir() in line
    # the processes that this one starts have nothing more to say, and use the same folders
    before = cache_variables()
    redirect_unwritable_caches()
    assert cache_variables() == before and capsys.readouterr().err == ""


def test_one_rank_of_a_launch_says_so(home, monkeypatch, capsys):
    make_unwritable(home, monkeypatch, "a file")
    monkeypatch.setenv("RANK", "1")
    redirect_unwritable_caches()
    assert cache_variables() and capsys.readouterr().err == ""


def test_a_home_that_can_be_written_to_is_left_alone(home, capsys):
    redirect_unwritable_caches()
    assert cache_variables() == {} and capsys.readouterr().err == ""
    assert list(home.iterdir()) == []


def test_caches_that_are_named_elsewhere_are_kept(home, monkeypatch, tmp_path):
    make_unwritable(home, monkeypatch, "a file")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "triton"))
    redirect_unwritable_caches()
    replaced = {name for name, path in cache_variables().items() if "temporary" in path}
    assert {"WANDB_DATA_DIR", "CUDA_CACHE_PATH"} <= replaced
    assert not any(name.startswith(("HF_", "TRITON")) for name in replaced)


def test_a_hub_folder_that_can_only_be_read_is_still_read(home, monkeypatch, tmp_path):
    shared = tmp_path / "home" / "shared"
    (shared / "hub").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(shared))
    make_unwritable(home, monkeypatch, "read-only")
    redirect_unwritable_caches()
    assert os.environ["HF_HUB_CACHE"] == str(shared / "hub")
    assert os.environ["HF_TOKEN_PATH"] == str(shared / "token")
    for variable in ("HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE"):
        assert Path(os.environ[variable]).is_relative_to(tempfile.gettempdir())


def test_the_temporary_folder_is_private_and_of_this_user(home, monkeypatch):
    make_unwritable(home, monkeypatch, "a file")
    redirect_unwritable_caches()
    folder = Path(os.environ["HF_HOME"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # another user's folder of that name is not used
    for variable in cache_variables():
        monkeypatch.delenv(variable)
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    folder.rename(folder.with_name(f"flame_accel-caches-{os.getuid()}"))
    redirect_unwritable_caches()
    assert Path(os.environ["HF_HOME"]).parent.name != f"flame_accel-caches-{another}"
