"""The checkpoints of a run: written atomically, found, pruned and set aside.

    step-N.tmp-TOKEN -> every rank writes -> manifest.json -> fsync -> rename to step-N -> prune

Which folders are checkpoints, and which of them are intact, is told in `checkpoint_files`; what
they contain is defined in `contents`.
"""

import itertools
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError

from flame_accel import files
from flame_accel.checkpoint.failed_loads import failed_read_error
from flame_accel.checkpoint_files import (
    STEP_PREFIX,
    TEMPORARY_INFIX,
    CheckpointEntries,
    find_damage,
    has_training_state,
    list_checkpoint_entries,
    step_of_checkpoint_name,
    write_manifest,
)
from flame_accel.config import UserError
from flame_accel.io_errors import describe_if_io_error
from flame_accel.observe import get_logger

DAMAGED, SUPERSEDED = "damaged", "superseded"
BEST = "best"
"""Name of the link to the best checkpoint."""
log = get_logger()


class CheckpointFolder:
    """The folder with all checkpoints of a run.

    Args:
        path: Folder that contains a `step-N` folder for every checkpoint.
        keep_latest_k: Number of checkpoints to keep; older ones are deleted once a new one is
            complete. 0 keeps all.
        start_token: 16 hexadecimal digits in the names of temporary folders, the same on every
            rank of a start and no other one's; None draws them.

    Attributes:
        in_use: Paths of checkpoints that something reads in the background; they are not deleted
            before the first save after that.
        last_good_step: Step of the latest update that was not skipped, if the run may have to go
            back to the newest checkpoint from before it, which is then not deleted either.
        best_step: Step of the best checkpoint so far, which is not deleted before the next better
            one is complete; None if there is none. The link `best` leads to it.
        unloadable: Intact folders whose contents could not be loaded, and why.
    """

    def __init__(self, path: Path, *, keep_latest_k: int, start_token: str | None = None) -> None:
        self.path = path
        self.keep_latest_k = keep_latest_k
        self.start_token = start_token or secrets.token_hex(8)
        self.unloadable: dict[Path, str] = {}
        self.in_use: set[Path] = set()
        self.last_good_step: int | None = None
        self.best_step: int | None = None

    def checkpoint_path(self, step: int) -> Path:
        """The `step-N` folder of a complete checkpoint, whether or not it exists."""
        return self.path / f"{STEP_PREFIX}{step}"

    def temporary_path(self, step: int) -> Path:
        """The folder in which a checkpoint is written; the same path on every rank of a start."""
        return self.path / f"{STEP_PREFIX}{step}{TEMPORARY_INFIX}{self.start_token}"

    def list_entries(self) -> CheckpointEntries:
        """What lies in the folder: checkpoints, intact or damaged, and what else looks like one."""
        return list_checkpoint_entries(self.path)

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
            log.warning("%s cannot be deleted; the next save or start tries it", temporary)

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
        write_manifest(temporary, run_facts)
        final = self.checkpoint_path(step)
        replaced = os.path.lexists(final)
        files.sync_then_rename_or_swap_with_existing(temporary, final)
        if replaced:
            files.rename_and_sync(temporary, _first_free_path_with_suffix(final, SUPERSEDED))
        if step == self.best_step:
            self._link_best_or_warn(step)
        try:
            self._delete_all_but_latest_k_unless_in_use(step)
        except OSError as error:
            # the new one is complete: this is tried again after the next one
            log.warning("an old checkpoint stays: %s", describe_if_io_error(error))
        return final

    def _delete_all_but_latest_k_unless_in_use(self, newest: int) -> None:
        """Deletes what is older than the latest `keep_latest_k`, of which `newest` is the last.

        Folders that are no complete checkpoints do not count among them.
        """
        if not self.keep_latest_k:
            return
        entries = self.list_entries()
        for leftover in entries.leftovers:
            if leftover.name.endswith(self.start_token):
                # of an earlier deletion that failed
                shutil.rmtree(leftover)
        last = -1 if self.last_good_step is None else self.last_good_step
        good = [folder for step, folder in entries.checkpoints.items() if step <= last]
        # while a better one is in flight, the link still leads to the best one before
        protected = {*self.in_use, *good[-1:], self.linked_best_path()}
        kept = 1
        for step, folder in reversed(entries.checkpoints.items()):
            if step < newest and kept < self.keep_latest_k:
                kept += find_damage(folder, step=step, compare_checksums=False) is None
            elif step < newest and step != self.best_step and folder not in protected:
                # it is no checkpoint any more once deleting it has begun
                temporary = self.temporary_path(step)
                files.rename_and_sync(folder, temporary)
                shutil.rmtree(temporary)

    def _link_best_or_warn(self, step: int) -> None:
        try:
            files.replace_link(self.path / BEST, self.checkpoint_path(step).name)
        except OSError as error:
            log.warning(
                "%s cannot be a link to the best checkpoint: %s",
                *(self.path / BEST, describe_if_io_error(error)),
            )

    def linked_best_path(self) -> Path | None:
        """The checkpoint to which the link `best` leads, whether or not it exists."""
        link = self.path / BEST
        return self.path / os.readlink(link) if link.is_symlink() else None

    def link_best(self, step: int | None) -> None:
        """Makes an existing checkpoint the best one; None removes a link to nowhere.

        Called by the process that owns the run folder, once it has loaded.
        """
        self.best_step = step
        linked = self.linked_best_path()
        if step is not None and linked != self.checkpoint_path(step):
            self._link_best_or_warn(step)
        elif linked is not None and not linked.exists():
            (self.path / BEST).unlink()

    def find_newest_intact_checkpoint(self) -> Path | None:
        """Finds the newest checkpoint that can be used. Changes nothing.

        What is passed over is logged.

        Returns:
            Path of the checkpoint; None if there is no checkpoint at all.

        Raises:
            UserError: There are checkpoints, and none of them can be used; exit code 2. Or one
                cannot be read.
        """
        entries = self.list_entries()
        for path, reason in entries.passed_over.items():
            log.warning("%s is not taken for a checkpoint: %s", path, reason)
        unusable = entries.claims()
        for step, folder in reversed(entries.checkpoints.items()):
            damage = self._find_damage_or_raise_if_unreadable(folder, step)
            if damage is None:
                return folder
            log.warning("%s is damaged (%s): it is not used", folder, damage)
            unusable[folder] = damage
        if not unusable:
            return None
        reasons = "".join(f"\n    {path.name}: {reason}" for path, reason in unusable.items())
        raise UserError(
            f"the run has checkpoints, and none of them can be used:{reasons}",
            where=str(self.path),
            remedy="put an intact copy of one there. To begin anew on purpose, move this folder "
            "away, or choose another job.dump_folder",
            exit_code=2,
        )

    def find_newest_to_rewind_to(self, last_step: int) -> Path | None:
        """Finds the newest intact checkpoint of a step up to `last_step`; None if there is none.

        It has all that training needs, not only weights.

        Raises:
            UserError: One cannot be read.
        """
        for step, folder in reversed(self.list_entries().checkpoints.items()):
            if step <= last_step and has_training_state(folder):
                damage = self._find_damage_or_raise_if_unreadable(folder, step)
                if damage is None:
                    return folder
                log.warning("%s is damaged (%s): it is not used", folder, damage)
        return None

    def find_checkpoint_of_step(self, step: int) -> Path:
        """Finds the checkpoint that the user asked for. Changes nothing.

        Raises:
            UserError: It does not exist, is damaged, or cannot be read.
        """
        entries = self.list_entries()
        folder = self.checkpoint_path(step)
        if step in entries.checkpoints:
            damage = self._find_damage_or_raise_if_unreadable(folder, step)
        else:
            damage = entries.passed_over.get(folder, "there is no such folder")
        if damage is not None:
            there = ", ".join(map(str, entries.checkpoints)) or "none"
            raise UserError(
                f"the checkpoint of step {step} cannot be loaded: {damage}",
                where=f"checkpoint.load_step = {step}, {folder}",
                remedy=f"choose one of the saved steps ({there}), or -1 for the newest intact one",
            )
        return folder

    def _find_damage_or_raise_if_unreadable(self, folder: Path, step: int) -> str | None:
        try:
            return self.unloadable.get(folder) or find_damage(folder, step=step)
        except (OSError, SafetensorError) as error:
            raise failed_read_error(folder, str(describe_if_io_error(error))) from error

    def delete_leftovers_and_rename_newer(self, loaded: Path | None, *, newer_suffix: str) -> None:
        """Sets aside what must not be loaded later, once a run has loaded.

        Called by the process that owns the run folder (`run_lock`): whoever wrote what interrupted
        saves have left, and is deleted, is gone. Folders newer than the loaded one are renamed.

        Args:
            loaded: The checkpoint that the run continues from; None if it starts anew.
            newer_suffix: Why newer ones do not count: `DAMAGED`, or `SUPERSEDED` if the user asked
                for that step.
        """
        entries = self.list_entries()
        for leftover in entries.leftovers:
            log.info("deleting %s: saving it was interrupted", leftover)
            shutil.rmtree(leftover)
        loaded_step = -1 if loaded is None else step_of_checkpoint_name(loaded.name)
        assert loaded_step is not None, loaded
        for step, folder in entries.checkpoints.items():
            if step > loaded_step:
                # the run continues from the older one: a later start must not return to these
                aside = _first_free_path_with_suffix(folder, newer_suffix)
                files.rename_and_sync(folder, aside)
                log.info("the checkpoint of step %d is now %s", step, aside)


def _first_free_path_with_suffix(folder: Path, suffix: str) -> Path:
    """The first free `step-N.suffix-I`, which is never loaded."""
    names = (folder.with_name(f"{folder.name}.{suffix}-{number}") for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))
