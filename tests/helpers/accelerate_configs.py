"""The files of accelerate_configs/, and what `accelerate launch` reads in them."""

from pathlib import Path
from typing import Any

import yaml
from accelerate.commands import launch

from tests.helpers.runs import ROOT

FILES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
NAMES = [path.stem for path in FILES]
GROUPS = ("fsdp_config", "deepspeed_config", "parallelism_config")


def read_config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def read_groups(content: dict[str, Any]) -> dict[str, Any]:
    """The keys of all groups together."""
    return {key: value for group in GROUPS for key, value in content.get(group, {}).items()}


def validate_launch(path: Path, *flags: str) -> Any:
    """The launcher's own arguments after it has read a file and flags."""
    parser = launch.launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), *flags, "train.py"])
    return launch._validate_launch_command(arguments)[0]
