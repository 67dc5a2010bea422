"""The starts of a run in environment.json: from which step on, on what, and with which options.

A run that was resumed with other options, versions or devices is described by the whole list: what
holds after some step follows from the starts before it. The rest of the file is in `run_folder`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from flame_accel.config import Config, to_toml
from flame_accel.config.file_formats import parse_toml

ENVIRONMENT_FILE = "environment.json"
CONFIG_FILE = "config.toml"
OptionValue = bool | int | float | str | list[Any]
"""As TOML has it; "none" stands for None."""


class OptionChange(TypedDict):
    """An option that had another value before a start; None where it did not exist."""

    option: str
    before: OptionValue | None
    after: OptionValue | None


RunStart = Mapping[str, Any]
"""A start: `step`, on what it ran, what the model is made from, and `changed_options`."""


def read_kept_starts(run_folder: Path) -> list[RunStart]:
    """The starts of a run whose steps count, the first one first; empty if none were recorded."""
    path = run_folder / ENVIRONMENT_FILE
    if not path.is_file():
        return []
    return json.loads(path.read_text(encoding="utf-8")).get("starts", [])


def read_options_of_last_start(run_folder: Path) -> dict[str, OptionValue]:
    """The options of the last start by name, `section.option`; empty if there was none."""
    path = run_folder / CONFIG_FILE
    return _parse_flat_options(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_options_that_made_step(run_folder: Path, step: int) -> dict[str, OptionValue]:
    """The options with which a run made the step `step`."""
    later = [start for start in read_kept_starts(run_folder) if start["step"] >= step]
    return _options_before_starts(read_options_of_last_start(run_folder), later)


def list_kept_starts_and_this_one(
    run_folder: Path, config: Config, *, step: int, environment: Mapping[str, Any]
) -> list[RunStart]:
    """The starts of a run whose steps count, with one that begins now.

    Starts at this step or later left nothing behind: what they computed is computed again.

    Args:
        run_folder: With the files of the starts before, if there were any.
        config: The options of this start.
        step: Number of completed steps.
        environment: What this start runs on.
    """
    earlier = read_kept_starts(run_folder)
    kept = [start for start in earlier if start["step"] < step]
    changes: list[OptionChange] = []
    if kept:
        before = _options_before_starts(
            read_options_of_last_start(run_folder), earlier[len(kept) :]
        )
        now = _parse_flat_options(to_toml(config))
        changes = [
            {"option": name, "before": before.get(name), "after": now.get(name)}
            for name in now | before
            if before.get(name) != now.get(name) and name != "job.config_file"
        ]
    return [*kept, {"step": step, **environment, "changed_options": changes}]


def _parse_flat_options(toml: str) -> dict[str, OptionValue]:
    return {entry.name: entry.value for entry in parse_toml(toml) if entry.key is not None}


def _options_before_starts(
    options: Mapping[str, OptionValue], starts: Sequence[RunStart]
) -> dict[str, OptionValue]:
    """The options before these starts, of which the last one had `options`."""
    restored = dict(options)
    for start in reversed(starts):
        for change in start["changed_options"]:
            if change["before"] is None:
                restored.pop(change["option"], None)
            else:
                restored[change["option"]] = change["before"]
    return restored
