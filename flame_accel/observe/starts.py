"""The starts of a run in environment.json: from which step on, on what, and with which options.

A run that was resumed with other options, versions or devices is described by the whole list: what
holds after some step follows from the starts before it. The rest of the file is in `run_folder`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from flame_accel.config import Config, to_toml
from flame_accel.config.file_formats import SyntaxProblem, parse_toml
from flame_accel.observe.damaged_records import (
    DamagedRecordError,
    move_aside,
    read_json_object,
    read_record_text,
    warn_once,
)

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
    """The starts of a run whose steps count, the first one first; empty if none were recorded.

    Those that are damaged are left out, which the log says.
    """
    path = run_folder / ENVIRONMENT_FILE
    if not path.is_file():
        return []
    try:
        starts = read_json_object(path).get("starts", [])
        kept = [start for start in starts if _is_start(start)]
        if len(kept) < len(starts):
            warn_once(path, "has damaged starts", f"{len(starts) - len(kept)} are passed over")
        return kept
    except (DamagedRecordError, TypeError) as error:
        warn_once(path, str(error), "the earlier starts of the run are not known")
        return []


def _is_start(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("step")) is int
        and isinstance(entry.get("changed_options"), list)
        and all(
            isinstance(change, dict)
            and change.keys() == {"option", "before", "after"}
            and isinstance(change["option"], str)
            for change in entry["changed_options"]
        )
    )


def read_options_of_last_start(run_folder: Path) -> dict[str, OptionValue]:
    """The options of the last start by name, `section.option`; empty if there was none.

    Of a damaged file none are known, which the log says. Options of other versions are among them.
    """
    path = run_folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        return _parse_flat_options(read_record_text(path))
    except (DamagedRecordError, SyntaxProblem, RecursionError) as error:
        problem = f"line {error.line} {error.message}" if isinstance(error, SyntaxProblem) else ""
        warn_once(path, problem or str(error), "the options of the last start are not compared")
        return {}


def list_changed_kernel_packages(run_folder: Path, now: Mapping[str, str]) -> list[str]:
    """`package: old version -> new version` for each whose kernels served otherwise at last.

    Args:
        run_folder: With the starts before, if there were any.
        now: Packages whose kernels serve -> their versions.
    """
    starts = read_kept_starts(run_folder)
    if not starts:
        return []
    before = starts[-1].get("kernel_packages")
    before = before if isinstance(before, dict) else {}
    return [
        f"{name}: {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def move_damaged_records_aside(run_folder: Path, *more_json_files: str) -> None:
    """Keeps the damaged ones of the files that a start is about to replace, under other names."""
    for name in (ENVIRONMENT_FILE, *more_json_files):
        if (run_folder / name).is_file():
            try:
                read_json_object(run_folder / name)
            except DamagedRecordError:
                move_aside(run_folder / name)
    if (run_folder / CONFIG_FILE).is_file() and not read_options_of_last_start(run_folder):
        move_aside(run_folder / CONFIG_FILE)


def flat_options(config: Config) -> dict[str, OptionValue]:
    """All options by name, `section.option`, as config.toml has them: without secrets."""
    return _parse_flat_options(to_toml(config))


def has_load_step_acted(run_folder: Path, load_step: int) -> bool:
    """Whether a run has gone back to a step, so that the same command does not do it again.

    It has if the last start was asked for the same step: a start is recorded once it has loaded.
    """
    return read_options_of_last_start(run_folder).get("checkpoint.load_step") == load_step


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
        now = flat_options(config)
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
