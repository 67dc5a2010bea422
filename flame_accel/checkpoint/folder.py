"""Checkpoint folders that exist whole or not at all.

    step-N.tmp-PID -> every rank writes -> fsync -> manifest.json -> rename to step-N -> prune

A folder without a manifest that fits its files does not exist for loading: it is set aside under
another name and the next older one is used. What is inside a checkpoint is the business of `state`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flame_accel import files
from flame_accel.config import UserError
from flame_accel.observe import get_logger

MANIFEST = "manifest.json"
STEP_PREFIX = "step-"
TEMPORARY_INFIX = ".tmp-"
DAMAGED, SUPERSEDED = "damaged", "superseded"


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        path: Folder that holds a `step-N` folder for every checkpoint.
        keep_latest_k: Older ones are removed once a newer one is complete; 0 keeps all.
    """

    def __init__(self, path: Path, *, keep_latest_k: int) -> None:
        self.path = path
        self.keep_latest_k = keep_latest_k

    def final(self, step: int) -> Path:
        """Where the complete checkpoint of a step lies."""
        return self.path / f"{STEP_PREFIX}{step}"

    def temporary(self, step: int) -> Path:
        """Where the checkpoint of a step is written; the same on every rank of a run."""
        return self.path / f"{STEP_PREFIX}{step}{TEMPORARY_INFIX}writing"

    def steps(self) -> list[int]:
        """Steps with a folder, oldest first, complete or not."""
        names = [entry.name for entry in self.path.glob(f"{STEP_PREFIX}*") if entry.is_dir()]
        numbers = [name.removeprefix(STEP_PREFIX) for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def begin(self, step: int) -> Path:
        """Makes an empty temporary folder for a step. For one process, before any writes."""
        temporary = self.temporary(step)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, step: int, description: Mapping[str, Any]) -> Path:
        """Makes what lies in the temporary folder the checkpoint of its step.

        For one process, after every rank has written.
        """
        temporary = self.temporary(step)
        content = {**description, "files": files.describe_files(temporary)}
        files.write_json(temporary / MANIFEST, content)
        final = self.final(step)
        replaced = final.exists()
        files.publish_folder(temporary, final)
        if replaced:
            files.rename_and_sync(temporary, _unused_name(final, SUPERSEDED))
        self._prune()
        return final

    def _prune(self) -> None:
        if self.keep_latest_k:
            for step in self.steps()[: -self.keep_latest_k]:
                shutil.rmtree(self.final(step))

    def find(self, load_step: int) -> Path | None:
        """The checkpoint to load: of a step, or with -1 the newest whole one; None without any.

        Leftovers of interrupted saves are removed; damaged folders, and those newer than a step
        that was asked for, are set aside under another name. For one process.

        Raises:
            UserError: `load_step` names a checkpoint that is not there or is damaged.
        """
        if not self.path.is_dir():
            candidates = []
        else:
            for leftover in self.path.glob(f"{STEP_PREFIX}*{TEMPORARY_INFIX}*"):
                get_logger().info("removing %s: its save was interrupted", leftover)
                shutil.rmtree(leftover)
            candidates = self.steps()
        if load_step >= 0:
            return self._find_step(load_step, candidates)
        for step in reversed(candidates):
            folder = self.final(step)
            damage = find_damage(folder)
            if damage is None:
                return folder
            aside = _set_aside(folder, DAMAGED)
            get_logger().warning("%s is damaged (%s): set aside as %s", folder, damage, aside.name)
        return None

    def _find_step(self, step: int, candidates: list[int]) -> Path:
        folder = self.final(step)
        damage = find_damage(folder) if step in candidates else "there is no such folder"
        if damage is not None:
            there = ", ".join(map(str, candidates)) or "none"
            raise UserError(
                f"the checkpoint of step {step} cannot be loaded: {damage}",
                where=f"checkpoint.load_step = {step}, {folder}",
                remedy=f"choose a step that is there ({there}), or -1 for the newest whole one",
            )
        for newer in candidates[candidates.index(step) + 1 :]:
            # the run goes on from the older one: a later start must not jump back to these
            aside = _set_aside(self.final(newer), SUPERSEDED)
            get_logger().info("%s was asked for: step %d is set aside as %s", folder, newer, aside)
        return folder


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"it has no {MANIFEST}"
    try:
        descriptions = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    return files.find_damaged_file(folder, descriptions, content=True)


def _set_aside(folder: Path, reason: str) -> Path:
    aside = _unused_name(folder, reason)
    files.rename_and_sync(folder, aside)
    return aside


def _unused_name(folder: Path, reason: str) -> Path:
    number = 0
    while (name := folder.with_name(f"{folder.name}.{reason}-{number}")).exists():
        number += 1
    return name
