"""The uploads of a run: which checkpoints and exports, where to, and what is said about them.

Nothing waits but the check before the run and the end of it, and no error of an upload ends it.
How a planned upload is made is in `planned_uploads`, when in `upload_queue`.
"""

import re
from pathlib import Path

from accelerate import Accelerator

from flame_accel.config import HubConfig
from flame_accel.config.hub_options import STEP
from flame_accel.hub.access import check_access_and_create_repository
from flame_accel.hub.branch_upload import format_push_command
from flame_accel.hub.finished_run import is_export_on_hub
from flame_accel.hub.planned_uploads import PlannedUploads
from flame_accel.hub.upload_record import (
    PlannedUpload,
    read_upload_record_or_empty,
    remove_needless_stages,
)
from flame_accel.observe import get_logger
from flame_accel.observe.run_end import read_finished_step
from flame_accel.parallel import run_on_main_and_broadcast
from flame_accel.stop_signals import StoppedBySignal

log = get_logger()


class HubUploads:
    """Uploads of one run. Every rank has one; only that of the main process does anything.

    Args:
        accelerator: The run's accelerator.
        options: Options of section hub.
        run_folder: The run folder.
        custom_modules: Packages and files that register the architecture of the model.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: HubConfig,
        run_folder: Path,
        *,
        custom_modules: tuple[str, ...],
    ) -> None:
        self._accelerator, self._options, self._run_folder = accelerator, options, run_folder
        self._custom_modules = custom_modules
        self._uploads: PlannedUploads | None = None

    def check_access_and_create_repository(self) -> None:
        """Checks login, name and permissions, and creates the repository. Every rank must call it.

        Raises:
            UserError: There can be no upload.
        """
        if self._options.repo_id is None:
            return
        repo_id, private = self._options.repo_id, self._options.private
        accepted = run_on_main_and_broadcast(
            self._accelerator,
            lambda: check_access_and_create_repository(
                repo_id,
                private=private,
                record=read_upload_record_or_empty(
                    self._run_folder, repo_id, report_damage=log.warning
                ),
                branch_pattern=self._fixed_or_main_and_step_regex(),
                overwrite=self._options.overwrite,
                accept_begun_if_unreachable=True,
            ),
        )
        if accepted.warning is not None:
            log.warning("%s", accepted.warning)
        if accepted.url is not None:
            log.info("uploads to: %s", accepted.url)
        if self._accelerator.is_main_process:
            self._uploads = PlannedUploads(accepted, self._options, self._run_folder)

    def resume_planned_uploads(self, checkpoints_in_use_to_update: set[Path]) -> None:
        """Makes the uploads that an earlier start of the run planned and did not finish.

        Args:
            checkpoints_in_use_to_update: Gets those that must not be deleted for the time being.
        """
        if self._uploads is None:
            return
        self._uploads.checkpoints_in_use = checkpoints_in_use_to_update
        remove_needless_stages(self._run_folder, self._uploads.record)
        for planned in list(self._uploads.record.planned):
            log.info("the upload of step %d was interrupted and is made now", planned.step)
            self._uploads.link_files_or_hold_checkpoint_and_queue(planned)

    def count_and_upload_due_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Uploads the model of a checkpoint if the options ask for it. Returns at once."""
        if self._uploads is None or self._options.when == "end":
            return
        self._uploads.record.checkpoints_since_upload += 1
        interval = 1 if self._options.when == "checkpoint" else int(self._options.when)
        if self._uploads.record.checkpoints_since_upload >= interval:
            self._uploads.record.checkpoints_since_upload = 0
            self._uploads.link_files_or_hold_checkpoint_and_queue(
                self._planned_upload(checkpoint, step, (self._fill_step_into_revision(step),))
            )
        else:
            self._uploads.write_record_or_warn()

    def upload_export(self, folder: Path, step: int) -> None:
        """Uploads the exported model. Returns at once."""
        if self._uploads is not None:
            self._uploads.link_files_or_hold_checkpoint_and_queue(
                self._planned_upload(folder, step, self._fixed_or_main_and_step_branches(step))
            )

    def upload_missing_of_finished_run(self) -> None:
        """Uploads what the Hub lacks of a run that has finished. Every rank must call it."""
        exported, step = self._run_folder / "hf", read_finished_step(self._run_folder)
        if self._options.repo_id is None or step is None or not exported.is_dir():
            return
        repo_id = self._options.repo_id
        export = self._planned_upload(exported, step, self._fixed_or_main_and_step_branches(step))
        if not run_on_main_and_broadcast(
            self._accelerator,
            lambda: is_export_on_hub(self._run_folder, repo_id, export),
        ):
            self.check_access_and_create_repository()
            self.resume_planned_uploads(set())
            self.upload_export_wait_then_abort(exported, step, self._options.wait_seconds)

    def upload_export_wait_then_abort(self, folder: Path, step: int, wait_seconds: int) -> None:
        """Uploads the exported model, and waits a limited time for what is being uploaded.

        Says what is missing then, and how to upload it; the run has ended well all the same.

        Raises:
            StoppedBySignal: A signal has interrupted the wait.
        """
        if self._uploads is None:
            return
        self.upload_export(folder, step)
        queue = self._uploads.queue
        if queue.unfinished_or_given_up():
            log.info("waiting for the last upload, at most %d s", wait_seconds)
        stopped: StoppedBySignal | None = None
        try:
            missing = queue.retry_at_once_wait_and_list_unfinished(wait_seconds)
        except StoppedBySignal as stop:
            stopped, missing = stop, queue.unfinished_or_given_up()
        self.abort()
        for planned in missing:
            folder = self._uploads.folder_to_push(planned)
            repo_id = self._uploads.record.repo_id
            commands = self._format_push_commands(folder, repo_id, planned)
            log.warning(
                "not on the Hub: step %d (%s). To upload it%s:\n%s",
                planned.step,
                folder,
                self._uploads.describe_problem_to_fix_before_push(planned),
                "\n".join(f"  {command}" for command in commands),
            )
        if stopped:
            raise stopped

    def abort(self) -> None:
        """Ends what is being uploaded; a restart of the run continues with it."""
        if self._uploads is not None:
            self._uploads.queue.abort_and_close()

    def _fill_step_into_revision(self, step: int) -> str:
        return self._options.revision.replace(STEP, str(step))

    def _fixed_or_main_and_step_branches(self, step: int) -> tuple[str, ...]:
        if STEP in self._options.revision:
            return "main", self._fill_step_into_revision(step)
        return (self._options.revision,)

    def _fixed_or_main_and_step_regex(self) -> str:
        """A regular expression for all branches that the run may upload to."""
        if STEP not in self._options.revision:
            return re.escape(self._options.revision)
        return "main|" + r"\d+".join(map(re.escape, self._options.revision.split(STEP)))

    def _planned_upload(self, folder: Path, step: int, revisions: tuple[str, ...]) -> PlannedUpload:
        source = str(folder.relative_to(self._run_folder))
        tag = self._options.tag.replace(STEP, str(step)) if self._options.tag else None
        message = f"Model after step {step}"
        return PlannedUpload(
            source=source, step=step, revisions=revisions, tag=tag, message=message
        )

    def _format_push_commands(
        self, folder: Path, repo_id: str, planned: PlannedUpload
    ) -> list[str]:
        """What uploads the same by hand: a command for each branch."""
        return [
            format_push_command(
                folder,
                repo_id,
                revision=revision,
                tag=planned.tag if revision == planned.revisions[0] else None,
                public=not self._options.private,
                overwrite=self._options.overwrite,
                include_logs=self._options.include_logs,
                custom_modules=self._custom_modules,
            )
            for revision in planned.revisions
        ]
