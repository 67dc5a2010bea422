"""Imports point down only, the options are read without torch, and no module is called utils."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.layers import LAYERS
from tests.helpers.runs import ROOT, launch_environment

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


MISTAKES = (
    "push nowhere owner/name",
    "push EMPTY owner/name",
    "push WEIGHTLESS owner/name",
    "push WEIGHTLESS a/b/c",
    "push WEIGHTLESS owner/name --revision ..x",
    "push WEIGHTLESS owner/name --custom ./nowhere.py",
    "push WEIGHTLESS owner/name --nonsense",
    "generate nowhere --prompt x",
    "generate EMPTY --prompt x",
    "generate WEIGHTLESS --prompt x",
    "generate WEIGHTLESS --prompts_file nowhere.txt",
    "generate WEIGHTLESS --prompt x --device gpu",
    "generate WEIGHTLESS --prompt x --custom ./nowhere.py",
    "generate owner/name --prompt x",
    "generate MODEL --prompts_file bad.jsonl",
    "generate MODEL --prompt \udcff",
    "generate MODEL --prompt x --chat",
    "evaluate nowhere --tasks piqa",
    "evaluate EMPTY --tasks piqa",
    "evaluate MODEL --tasks ,",
    "evaluate MODEL --tasks piqa --include_path nowhere",
    "evaluate MODEL --tasks piqa --batch_size x",
    "evaluate MODEL --tasks piqa --apply_chat_template",
    "export nowhere out",
    "export EMPTY out",
    "export EMPTY EMPTY",
    "export EMPTY out --dtype fp8",
    "report nowhere",
    "report EMPTY",
)
RUN_ALL = """
import contextlib, io, sys
from flame_accel.__main__ import main
for line in sys.argv[1:]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main(line.split())
        print("no error:", line)
    except SystemExit as ended:
        assert ended.code in (1, 2) and said.getvalue(), line
    loaded = {"torch", "transformers", "datasets", "fla"} & set(sys.modules)
    if loaded:
        sys.exit(f"{line}: imports {loaded}")
"""


def test_simple_mistakes_are_answered_before_torch_is_imported(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless/config.json").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/tokenizer_config.json").write_text("{}")
    save_file({"weight": np.ones(1)}, tmp_path / "model/model.safetensors")
    (tmp_path / "bad.jsonl").write_text("{")
    folders = ("EMPTY", "WEIGHTLESS", "MODEL")
    lines = [
        " ".join(str(tmp_path / word.lower()) if word in folders else word for word in line.split())
        for line in MISTAKES
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *lines],
        cwd=tmp_path,
        env=launch_environment(HF_HOME=str(tmp_path / "hf_home")),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
