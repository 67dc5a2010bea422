"""setup_environment.sh installs into .venv with what is there: pip, else uv, else ensurepip.

The interpreters here are stand-ins that record what they are asked to do.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT

# has no package, and only the tools that TOOLS names; ensurepip provides pip
PYTHON = """\
#!/bin/sh
log="$CHECKOUT/log"
case "$1 $2 $3" in
  "-m pip --version") [ -e "$CHECKOUT/pip" ] ;;
  "-m pip install") shift 2; echo "pip $*" >>"$log" ;;
  "-m ensurepip ") case "$TOOLS" in *ensurepip*) touch "$CHECKOUT/pip" ;; *) exit 1 ;; esac ;;
  *) exit 1 ;;
esac
"""
UV = '#!/bin/sh\necho "uv $*" >>"$CHECKOUT/log"\n'


@pytest.fixture
def set_up(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`set_up("pip", ...)`: sources a copy of the script next to a .venv with these tools."""
    for name in ("setup_environment.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    programs = {tmp_path / ".venv/bin/python": PYTHON, tmp_path / "tools/uv": UV}
    for path, content in programs.items():
        path.parent.mkdir(parents=True)
        path.write_text(content)
        path.chmod(0o755)

    def run(*tools: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "log").write_text("")
        if "pip" in tools:
            (tmp_path / "pip").touch()
        if "uv" not in tools:
            (tmp_path / "tools/uv").unlink()
        return subprocess.run(
            ["bash", "-euc", "source ./setup_environment.sh; setup_train_environment"],
            cwd=tmp_path,
            env={
                "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}",
                "CHECKOUT": str(tmp_path),
                "TOOLS": " ".join(tools),
            },
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("tools", "start"),
    [
        (("pip", "uv"), "pip install --quiet "),
        (("uv", "ensurepip"), "uv pip install --quiet --python {tmp}/.venv/bin/python "),
        (("ensurepip",), "pip install --quiet "),
    ],
)
def test_requirements_and_the_checkout_are_installed(set_up, tmp_path, tools, start):
    done = set_up(*tools)
    assert done.returncode == 0, done.stderr
    start = start.replace("{tmp}", str(tmp_path))
    assert (tmp_path / "log").read_text().splitlines() == [
        f"{start}--requirement={tmp_path}/requirements.txt",
        f"{start}--no-deps --no-build-isolation --editable {tmp_path}",
    ]


def test_without_any_tool_the_error_names_the_command(set_up, tmp_path):
    done = set_up()
    assert done.returncode == 1 and (tmp_path / "log").read_text() == ""
    assert f"uv pip install --python {tmp_path}/.venv/bin/python" in done.stderr
    assert not list((tmp_path / ".venv").glob("installed.*"))


def test_an_environment_that_is_only_linked_keeps_its_own_package(set_up, tmp_path):
    (tmp_path / ".venv").rename(tmp_path / "elsewhere")
    (tmp_path / ".venv").symlink_to(tmp_path / "elsewhere")
    assert set_up("pip").returncode == 0
    assert "--editable" not in (tmp_path / "log").read_text()


def test_an_environment_whose_making_was_interrupted_is_made_again(set_up, tmp_path):
    python = (tmp_path / ".venv/bin/python").rename(tmp_path / "tools/made")
    for name in ("python3.11", "python", "python3"):
        stand_in = tmp_path / "tools" / name
        # has no package, can make environments
        stand_in.write_text(
            '#!/bin/sh\n[ "$1" = - ] && exit 1\n[ "$1" = -c ] && exit\n'
            f'cp {python} "$3/bin/python"\n'
        )
        stand_in.chmod(0o755)
    assert set_up("pip").returncode == 0
    assert (tmp_path / ".venv/bin/python").exists()
    assert len((tmp_path / "log").read_text().splitlines()) == 2
