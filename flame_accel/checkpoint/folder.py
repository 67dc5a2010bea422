"""Checkpoint folders, which are written atomically.

    step-N.tmp-writing -> every rank writes -> manifest.json -> fsync -> rename to step-N -> prune

A folder whose manifest is missing or does not match its files is never loaded: it is renamed, and
the next older one is used. What a checkpoint contains is defined in `contents`.
"""

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path

from flame_accel import files
from flame_accel.config import UserError
from flame_accel.io_errors import describe_if_io_error
from flame_accel.model_files import (
    MANIFEST,
    STEP_PREFIX,
    TEMPORARY_INFIX,
    find_damage_or_missing_manifest,
)
from flame_accel.observe import get_logger

DAMAGED, SUPERSEDED = "damaged", "superseded"


class CheckpointFolder:
    """The folder with all checkpoints of a run.

    Args:
        path: Folder that contains a `step-N` folder for every checkpoint.
        keep_latest_k: Number of checkpoints to keep; older ones are deleted once a new one is
            complete. 0 keeps all.

    Attributes:
        in_use: Paths of checkpoints that something reads in the background; they are not deleted
            before the first save after that.
    """

    def __init__(self, path: Path, *, keep_latest_k: int) -> None:
        self.path = path
        self.keep_latest_k = keep_latest_k
        self.in_use: set[Path] = set()

    def checkpoint_path(self, step: int) -> Path:
        """The `step-N` folder of a complete checkpoint, whether or not it exists."""
        return self.path / f"{STEP_PREFIX}{step}"

    def temporary_path(self, step: int) -> Path:
        """The folder in which a checkpoint is written; the same path on every rank of a run."""
        return self.path / f"{STEP_PREFIX}{step}{TEMPORARY_INFIX}writing"

    def list_steps_intact_or_damaged(self) -> list[int]:
        """Steps that have a `step-N` folder, intact or damaged, in ascending order."""
        names = [entry.name for entry in self.path.glob(f"{STEP_PREFIX}*") if entry.is_dir()]
        numbers = [name.removeprefix(STEP_PREFIX) for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def create_temporary_folder(self, step: int) -> Path:
        """Creates a step's empty temporary folder. Called by one process, before any writes."""
        temporary = self.temporary_path(step)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        return temporary

    def delete_temporary_folder_or_warn(self, step: int) -> None:
        """Deletes what a failed save has written so far. Called by one process."""
        temporary = self.temporary_path(step)
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.exists():
            get_logger().warning("%s cannot be deleted; the next save or start tries it", temporary)

    def write_manifest_rename_and_prune(self, step: int, run_facts: Mapping[str, object]) -> Path:
        """Turns the temporary folder of a step into its checkpoint, and deletes old checkpoints.

        Called by one process, after every rank has written.

        Args:
            step: Number of completed updates.
            run_facts: What the manifest says besides the files, JSON-able.

        Returns:
            The checkpoint's final path.
        """
        temporary = self.temporary_path(step)
        content = {**run_facts, "files": files.describe_files(temporary)}
        files.write_json_atomically(temporary / MANIFEST, content)
        final = self.checkpoint_path(step)
        replaced = final.exists()
        files.sync_and_swap_old_into_temporary(temporary, final)
        if replaced:
            files.rename_and_sync(temporary, _first_free_path_with_suffix(final, SUPERSEDED))
        self._delete_all_but_latest_k_unless_in_use()
        return final

    def _delete_all_but_latest_k_unless_in_use(self) -> None:
        if self.keep_latest_k:
            for step in self.list_steps_intact_or_damaged()[: -self.keep_latest_k]:
                if self.checkpoint_path(step) not in self.in_use:
                    self._delete_or_warn(self.checkpoint_path(step))

    def _delete_or_warn(self, checkpoint: Path) -> None:
        """The newer checkpoint is complete: what fails here is tried again after the next one."""
        try:
            shutil.rmtree(checkpoint)
        except OSError as error:
            get_logger().warning("an old checkpoint stays: %s", describe_if_io_error(error))

    def find_intact_checkpoint(self, load_step: int) -> Path | None:
        """Finds the checkpoint to load. Changes nothing.

        Args:
            load_step: Step to load; -1 loads the newest intact checkpoint.

        Returns:
            Path of the checkpoint; None if `load_step` is -1 and there is no intact one.

        Raises:
            UserError: `load_step` names a checkpoint that does not exist or is damaged.
        """
        saved_steps = self.list_steps_intact_or_damaged()
        if load_step >= 0:
            return self._intact_checkpoint_of_step_or_raise(load_step, saved_steps)
        for step in reversed(saved_steps):
            folder = self.checkpoint_path(step)
            damage = find_damage_or_missing_manifest(folder)
            if damage is None:
                return folder
            get_logger().warning("%s is damaged (%s): it is not used", folder, damage)
        return None

    def _intact_checkpoint_of_step_or_raise(self, step: int, saved_steps: list[int]) -> Path:
        folder = self.checkpoint_path(step)
        exists = step in saved_steps
        damage = find_damage_or_missing_manifest(folder) if exists else "there is no such folder"
        if damage is not None:
            there = ", ".join(map(str, saved_steps)) or "none"
            raise UserError(
                f"the checkpoint of step {step} cannot be loaded: {damage}",
                where=f"checkpoint.load_step = {step}, {folder}",
                remedy=f"choose one of the saved steps ({there}), or -1 for the newest intact one",
            )
        return folder

    def delete_leftovers_and_rename_newer(self, loaded: Path | None, *, newer_suffix: str) -> None:
        """Sets aside what must not be loaded later. Called by one process, once a run has loaded.

        Leftovers of interrupted saves are deleted. Folders newer than the loaded one are renamed.

        Args:
            loaded: The checkpoint that the run continues from; None if it starts anew.
            newer_suffix: Why newer ones do not count: `DAMAGED`, or `SUPERSEDED` if the user asked
                for that step.
        """
        for leftover in self.path.glob(f"{STEP_PREFIX}*{TEMPORARY_INFIX}*"):
            get_logger().info("deleting %s: saving it was interrupted", leftover)
            shutil.rmtree(leftover)
        for step in self.list_steps_intact_or_damaged():
            if loaded is None or step > step_of_checkpoint(loaded):
                # the run continues from the older one: a later start must not return to these
                aside = _first_free_path_with_suffix(self.checkpoint_path(step), newer_suffix)
                files.rename_and_sync(self.checkpoint_path(step), aside)
                get_logger().info("the checkpoint of step %d is now %s", step, aside)


def step_of_checkpoint(folder: Path) -> int:
    """The step of a `step-N` folder, from its name."""
    return int(folder.name.removeprefix(STEP_PREFIX))


def _first_free_path_with_suffix(folder: Path, suffix: str) -> Path:
    """The first free `step-N.suffix-I`, which is never loaded."""
    names = (folder.with_name(f"{folder.name}.{suffix}-{number}") for number in itertools.count())
    return next(name for name in names if not name.exists())
