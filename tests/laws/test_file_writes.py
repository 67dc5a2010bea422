"""Nothing writes files but `flame_accel.files`, except for logs that grow line by line."""

import ast
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT

PACKAGE = ROOT / "flame_accel"
ALLOWED = {
    ("observe/step_records.py", "open"),  # metrics.jsonl and its like, line by line
    ("observe/signs_of_life.py", "touch"),  # that a run is given up: an empty file
    ("observe/watchdog.py", "open"),  # stacks, written while the process hangs
    ("commands/continuations.py", "open"),  # generated texts, line by line
    ("hub/modeling_fla.py", "write_bytes"),  # travels with a model, without this package
    ("commands/sweep_runs.py", "open"),  # the console of each run
    ("standard_streams.py", "open"),  # /dev/null
    ("cache_folders.py", "mkdtemp"),  # in place of a cache folder that cannot be written
}
ALWAYS_WRITE = {
    "write_text", "write_bytes", "touch", "FileHandler", "mkstemp", "mkdtemp", "tofile", "dump",
    "rename", "renames", "symlink_to", "hardlink_to", "copy2", "copyfile", "copytree", "move",
    "savez", "save_file",
}  # fmt: skip


def name_of_written_call(call: ast.Call) -> str | None:
    """The name of a function that writes, renames or copies a file; None for any other call."""
    attribute = isinstance(call.func, ast.Attribute)
    if isinstance(call.func, ast.Attribute):
        name = call.func.attr
    elif isinstance(call.func, ast.Name):
        name = call.func.id
    else:
        return None
    if name == "open":
        constants = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = [node.value for node in constants if isinstance(node, ast.Constant)]
        writes = any(
            isinstance(mode, str) and 0 < len(mode) <= 3 and set(mode) <= set("rwxabt+")
            and set(mode) & set("wxa+")
            for mode in modes
        )  # fmt: skip
        return name if writes else None
    if name == "replace":
        # str.replace takes two arguments, Path.replace one
        is_os = attribute and ast.unparse(call.func).startswith("os.")
        return name if is_os or (len(call.args) == 1 and not call.keywords) else None
    return name if attribute and name in ALWAYS_WRITE else None


def writing_calls(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [name for call in calls if (name := name_of_written_call(call)) is not None]


@pytest.mark.parametrize(
    "source",
    [
        'path.write_text("a")',
        'open(path, "w")',
        'path.open("wb")',
        'path.open(mode="a")',
        "os.replace(a, b)",
        "draft.replace(path)",
        "os.rename(a, b)",
        "json.dump(content, file)",
        "shutil.move(a, b)",
        "tempfile.mkdtemp()",
    ],
)
def test_a_call_that_writes_is_noticed(source):
    assert len(writing_calls(source)) == 1


@pytest.mark.parametrize(
    "source",
    ['path.open("rb")', "open(path)", 'text.replace("a", "b")', "write_text(path, text)"],
)
def test_a_call_that_does_not_write_is_not(source):
    assert writing_calls(source) == []


def test_only_the_module_of_files_writes_files():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "files.py"
        for name in writing_calls(Path(path).read_text())
    }
    assert found == ALLOWED
