"""Imports point down only, the options are read without torch, and no module is called utils."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.layers import LAYERS
from tests.helpers.runs import ROOT

PACKAGE = ROOT / "flame_accel"
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}


def imported_folders(path: Path) -> set[str]:
    """Folders of the package that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module == "flame_accel":
                names.update(f"flame_accel.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    parts = [name.split(".") for name in names if name.startswith("flame_accel.")]
    return {part[1] for part in parts} - {"__version__"}


# the package's own entries reach everything
ENTRIES = ("__init__.py", "__main__.py", "_import_hook.py")
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() not in ENTRIES
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path):
    folder = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_folders(path):
        assert other == folder or LEVEL[other] < LEVEL[folder], f"{path} imports {other}"


def test_every_folder_has_a_level():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} == set(
        LEVEL
    )


def test_every_module_says_what_lives_there():
    for path in [*PACKAGE.rglob("*.py"), ROOT / "train.py"]:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
        assert "utils" not in path.stem, path


def test_the_command_line_answers_without_torch():
    code = "import sys, flame_accel, flame_accel.config; print({'torch', 'fla'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
