"""The package: what a wheel holds, that it runs without a checkout, and what its pins say."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flame_accel
from tests.helpers.runs import ROOT, launch_environment, read_records

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = ("flame_accel", "configs", "accelerate_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the checkout, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, copy)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", str(folder), str(copy)),
        ],
        check=True,
    )
    shutil.rmtree(copy)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Path:
    """The programs of an environment that has the wheel and sees the packages of this one."""
    environment = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
            *("--no-deps", "--no-index", str(wheel)),
        ],
        check=True,
    )
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def run_installed(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `flame-accel` in a folder, without the checkout."""
    environment = launch_environment()
    del environment["PYTHONPATH"]
    environment["PATH"] = f"{installed}:{os.environ['PATH']}"
    return subprocess.run(
        ["flame-accel", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_wheel_holds_every_file_of_the_package(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "flame_accel"
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.json", "py.typed")
        for path in package.rglob(pattern)
        if "presets" not in path.parts
    }
    for folder, presets in {
        "configs": "flame_accel/presets/models",
        "configs/recipes": "flame_accel/presets/recipes",
        "accelerate_configs": "flame_accel/presets/accelerate",
    }.items():
        files = [
            path for path in (ROOT / folder).iterdir() if path.suffix in (".json", ".toml", ".yaml")
        ]
        assert files
        expected |= {f"{presets}/{path.name}" for path in files}
    assert expected <= held
    # neither tests nor what is not tracked
    assert {name.partition("/")[0] for name in held} == {
        "flame_accel",
        f"flame_accel-{flame_accel.__version__}.dist-info",
    }


def test_the_installed_command_answers_without_a_checkout(installed, tmp_path):
    assert run_installed(installed, tmp_path, "--version").stdout == (
        f"flame_accel {flame_accel.__version__}\n"
    )
    assert "usage: flame-accel " in run_installed(installed, tmp_path, "-h").stdout
    assert "--training.steps" in run_installed(installed, tmp_path, "train", "-h").stdout
    refused = run_installed(installed, tmp_path, "train", "--training.stepz", "3")
    assert refused.returncode == 2 and "--training.steps" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_installed_command_trains_the_quickstart_in_an_empty_folder(installed, tmp_path):
    short = ("--training.steps", "12", "--training.warmup_steps", "2")
    done = run_installed(installed, tmp_path, "train", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: exp/quickstart/report.html" in done.stdout
    assert (tmp_path / "exp/quickstart/hf/model.safetensors").is_file()
    assert read_records(tmp_path / "exp/quickstart")[-1]["step"] == 12
    assert done.stderr == ""


def read_pins(file: str) -> list[Requirement]:
    """The requirements of a file that hold for the Python of the lock."""
    lines = (ROOT / file).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [
        pin for pin in found if not pin.marker or pin.marker.evaluate({"python_version": "3.11"})
    ]


LOCK = {
    canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
    for pin in read_pins("requirements.lock")
}


@pytest.mark.parametrize(
    "file", ["requirements.txt", "requirements-engines.txt", "requirements-test.txt"]
)
def test_the_lock_has_the_pins(file):
    for pin in read_pins(file):
        assert LOCK[canonicalize_name(pin.name)] == str(pin.specifier).removeprefix("=="), pin


def test_the_lock_has_everything_that_the_pins_need():
    for name, version in LOCK.items():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            # of another Python or system than the one that runs this
            continue
        if package.version.partition("+")[0] != version:
            continue
        for text in package.requires or []:
            needed = Requirement(text)
            on_gpus = re.match("nvidia|cuda", needed.name)
            if needed.marker is None or needed.marker.evaluate(
                {"extra": "", "python_version": "3.11"}
            ):
                assert on_gpus or canonicalize_name(needed.name) in LOCK, f"{name} needs {text}"


def test_every_package_that_is_imported_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(text).name) for group in groups for text in group}
    other_names = {
        "fla": "flash-linear-attention",
        "mlflow": "mlflow-skinny",
        "vl_convert": "vl-convert-python",
        "yaml": "pyyaml",
    }
    # torch brings it on Linux; nothing imports it where there is none
    known = {*sys.stdlib_module_names, "flame_accel", "tomli", "triton"}
    for path in (ROOT / "flame_accel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in {module.partition(".")[0] for module in modules} - known:
                name = canonicalize_name(other_names.get(module, module))
                assert name in declared, f"{path.relative_to(ROOT)} imports {module}"


def test_the_ranges_of_the_package_admit_the_tested_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["deepspeed"], *extras["torchao"]]:
        needed = Requirement(text)
        if not needed.marker or needed.marker.evaluate({"python_version": "3.11"}):
            version = LOCK[canonicalize_name(needed.name)]
            assert needed.specifier.contains(version), f"{text}: {version} is tested"
