"""The places in a run folder that a run writes to: what stands there may have to be moved first.

Told before the training, since most of these files are first written at its end.
"""

import os
from pathlib import Path

from flame_accel.config import Config, UserError
from flame_accel.observe.trackers import TRACKERS_FILE, enabled_tracker_names

FILES = (
    "config.toml",
    "environment.json",
    "ended.json",
    "evaluations.jsonl",
    "hub.json",
    "log.txt",
    "metrics.jsonl",
    "report.html",
    "skipped.jsonl",
    TRACKERS_FILE,
)
APPENDED = ("evaluations.jsonl", "log.txt", "metrics.jsonl", "skipped.jsonl")
"""Files that are not replaced, so that they have to be writable themselves."""


def check_places_of_outputs(run_folder: Path, config: Config) -> None:
    """Checks that nothing stands where a run will write a file or a folder; reads only.

    Raises:
        UserError: Names all that does.
    """
    folders = ["hf", "watchdog"]
    if config.checkpoint.enable_checkpoint:
        folders.append(config.checkpoint.folder)
    trackers = enabled_tracker_names(config.metrics)
    if "tensorboard" in trackers:
        folders.append(config.metrics.save_tb_folder)
    if "wandb" in trackers:
        folders.append("wandb")
    if config.profiling.enable_profiling:
        folders.append(config.profiling.save_traces_folder)
    if config.profiling.enable_memory_snapshot:
        folders.append(config.profiling.save_memory_snapshot_folder)
    found = {name: _obstacle_to_file(run_folder / name) for name in FILES}
    found |= {name: _obstacle_to_folder(run_folder / name) for name in folders}
    obstacles = [f"{name} {problem}" for name, problem in found.items() if problem is not None]
    if obstacles:
        raise UserError(
            f"the run cannot write all of its results: {'; '.join(obstacles)}",
            where=f"job.dump_folder = {run_folder}",
            remedy="move it away, or choose another job.dump_folder",
        )


def _obstacle_to_file(path: Path) -> str | None:
    """What is wrong with a place for a file, as part of a sentence; None if nothing is."""
    if path.is_dir():
        return "is a folder"
    if path.is_symlink() and not path.resolve().parent.is_dir():
        return "is a link to nowhere"
    # what is sent to /dev/null is not wanted; a pipe would be waited for
    if path.exists() and not (path.is_file() or path.is_char_device()):
        return "is neither a file nor a folder"
    if path.name in APPENDED and path.exists() and not os.access(path, os.W_OK):
        return "is not writable"
    return None


def _obstacle_to_folder(path: Path) -> str | None:
    """What is wrong with a place for a folder, as part of a sentence; None if nothing is."""
    if not os.path.lexists(path):
        return _obstacle_to_parents(path)
    if not path.is_dir():
        return "is a link to nowhere" if not path.exists() else "is not a folder"
    return None if os.access(path, os.W_OK | os.X_OK) else "is not writable"


def _obstacle_to_parents(path: Path) -> str | None:
    existing = next((parent for parent in path.parents if os.path.lexists(parent)), None)
    if existing is None or existing.is_dir():
        return None
    return f"is in {existing}, which is not a folder"
