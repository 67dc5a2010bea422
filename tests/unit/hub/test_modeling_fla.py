"""The code in an export says what it needs and does not find.

That it loads every model is tested in `test_remote_code`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from flame_accel.hub import modeling_fla
from tests.helpers.runs import ROOT


def hide_packages(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Has this process look as if packages were not installed; in the code file only."""
    find_spec, import_module = importlib.util.find_spec, importlib.import_module

    def hide_spec(name: str) -> Any:
        return None if name.partition(".")[0] in packages else find_spec(name)

    def refuse_import(name: str) -> Any:
        top = name.partition(".")[0]
        if top in packages:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        return import_module(name)

    monkeypatch.setattr(modeling_fla.importlib.util, "find_spec", hide_spec)
    monkeypatch.setattr(modeling_fla.importlib, "import_module", refuse_import)


def test_the_code_says_which_package_is_missing(monkeypatch):
    with monkeypatch.context() as patch:
        hide_packages(patch, "fla")
        with pytest.raises(ImportError, match=r": pip install flash-linear-attention$"):
            modeling_fla.import_packages()
    with monkeypatch.context() as patch:
        hide_packages(patch, "flame_accel", "triton")
        modeling_fla.import_packages()
        with pytest.raises(ImportError, match=r"no device .*, pip install /path/to"):
            modeling_fla.check_flame_accel_or_triton_device()
    modeling_fla.check_flame_accel_or_triton_device()


def test_a_folder_with_the_name_of_flame_accel_is_not_taken_for_the_package(monkeypatch, tmp_path):
    (tmp_path / "flame_accel/flame_accel").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(each for each in sys.path if Path(each) != ROOT)])
    loaded = [name for name in sys.modules if name.partition(".")[0] == "flame_accel"]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.util.find_spec("flame_accel") is not None
    assert not modeling_fla.has_flame_accel()
    monkeypatch.setattr(modeling_fla, "triton_has_device", lambda: False)
    with pytest.raises(ImportError, match="a folder of that name does not count"):
        modeling_fla.check_flame_accel_or_triton_device()


def test_the_code_says_that_fla_is_too_old():
    with pytest.raises(ImportError, match=r"attention .* has no class NewConfig.*--upgrade"):
        modeling_fla.load_base_class_unless_author_files_pending("NewConfig")
