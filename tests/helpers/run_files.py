"""Run files in tests: written, parsed, and what is wrong with them."""

from pathlib import Path

from flame_accel.config import Config, parse
from tests.helpers.options import REQUIRED, config_error


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *flags: str) -> list[str]:
    """Every problem of a run file with the required options added."""
    error = config_error([*REQUIRED, "--job.config_file", str(path), *flags])
    return [str(problem) for problem in error.problems]


def parsed(path: Path, *flags: str) -> Config:
    """The configuration of a run file with the required options added."""
    return parse([*REQUIRED, "--job.config_file", str(path), *flags])
