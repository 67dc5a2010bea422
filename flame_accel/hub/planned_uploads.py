"""The planned uploads of a run: their files staged, hub.json kept, and made by the queue's thread.

No error of an upload ends the run. What is planned is decided in `uploads`, when an upload is made
in `upload_queue`, what it consists of in `upload_folder`.
"""

import threading
from pathlib import Path

from flame_accel import files
from flame_accel.config import HubConfig, UserError
from flame_accel.hub.access import AcceptedRepository
from flame_accel.hub.branch_upload import branch_names_fullmatch_regex, merge_cards_and_upload
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.hub_upload import Upload
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.hub.upload_folder import (
    add_missing_code_card_logs_and_hide_paths,
    find_run_and_checkpoint_step,
    replace_stage_with_model_files,
)
from flame_accel.hub.upload_queue import Failure, UploadQueue
from flame_accel.hub.upload_record import (
    PlannedUpload,
    remove_needless_stages,
    stage_folder,
    write_upload_record,
)
from flame_accel.hub.uploaded_files import checksum_of_model_files, has_checkpoint_manifest
from flame_accel.observe import get_logger
from flame_accel.observe.run_end import read_finished_step

MODEL = "model"
"""Folder of the model's files in the folder of an upload."""
log = get_logger()


class PlannedUploads:
    """Makes the uploads that a run plans, in the background. Only the main process has one.

    Args:
        repository: Where to; its record is updated with each upload.
        options: Options of section hub.
        run_folder: The run folder.

    Attributes:
        queue: Makes the uploads.
        record: The contents of hub.json.
        checkpoints_in_use: Gets those whose files cannot be linked, until they are copied.
    """

    def __init__(
        self, repository: AcceptedRepository, options: HubConfig, run_folder: Path
    ) -> None:
        self._repository, self._options, self._run_folder = repository, options, run_folder
        self.record = repository.record
        self.checkpoints_in_use: set[Path] = set()
        # the record is changed by the run and by the thread of the queue
        self._record_lock = threading.RLock()
        self._process = HubProcess()
        self.queue: UploadQueue[PlannedUpload] = UploadQueue(
            self._prepare_and_upload,
            replaces=PlannedUpload.covers_tag_and_branches_of,
            abort=self._process.kill_and_refuse_requests,
            report_success=self._log_success_and_remove,
            report_failure=self._remember_and_log_failure,
            report_replaced=self._log_and_remove_replaced,
        )
        self._problems: dict[PlannedUpload, HubProblem] = {}
        """The last one of each upload that has failed."""

    def link_files_or_hold_checkpoint_and_queue(self, planned: PlannedUpload) -> None:
        """Links the files, so that pruning does not remove them, and leaves the rest to the queue.

        Where there are no hard links the queue's thread copies them, and until then the checkpoint
        is not pruned. An error here costs an upload and not the run.
        """
        if planned in self.queue.unfinished_or_given_up():
            return
        source = self._run_folder / planned.source
        staged = stage_folder(self._run_folder, planned) / MODEL
        try:
            if not staged.is_dir():
                replace_stage_with_model_files(source, staged, files.link_file)
        except OSError:
            self.checkpoints_in_use.add(source)
        except UserError as error:
            log.warning("step %d is not uploaded: %s", planned.step, error)
            self._drop_plan_stage_and_checkpoint_hold(planned)
            return
        with self._record_lock:
            if planned not in self.record.planned:
                self.record.planned.append(planned)
            self.write_record_or_warn()
        self.queue.add(planned)

    def _drop_plan_stage_and_checkpoint_hold(self, planned: PlannedUpload) -> None:
        """Removes an upload that is made, or that is never made, from record and disk."""
        with self._record_lock:
            if planned in self.record.planned:
                self.record.planned.remove(planned)
            self.write_record_or_warn()
            remove_needless_stages(self._run_folder, self.record)
            if all(planned.source != other.source for other in self.record.planned):
                self.checkpoints_in_use.discard(self._run_folder / planned.source)

    def _prepare_and_upload(self, planned: PlannedUpload) -> None:
        """Called by the queue's thread; raises `HubProblem`."""
        stage = stage_folder(self._run_folder, planned)
        source = self._run_folder / planned.source
        staged, checksum_file = stage / MODEL, stage / "checksum"
        try:
            if not staged.is_dir():
                replace_stage_with_model_files(source, staged)
                self.checkpoints_in_use.discard(source)
            if not checksum_file.exists():
                # of the files as they are in the source, before they are prepared
                files.write_text_atomically(checksum_file, checksum_of_model_files(staged))
            checksum = checksum_file.read_text(encoding="utf-8")
            # a checkpoint may have been deleted meanwhile; its files are still here
            known = find_run_and_checkpoint_step(source) if source.is_dir() else None
            origin = known or ModelOrigin(run_folder=self._run_folder, step=planned.step)
            add_missing_code_card_logs_and_hide_paths(
                staged,
                self._run_folder,
                origin,
                example_repo_id=self.record.repo_id,
                example_revision="main" if "main" in planned.revisions else planned.revisions[0],
                include_logs=self._options.include_logs,
            )
            upload = Upload(
                folder=str(staged),
                repo_id=self.record.repo_id,
                revisions=planned.revisions,
                tag=planned.tag,
                message=planned.message,
                run_id=self.record.run_id,
            )
            commits = merge_cards_and_upload(
                self._process,
                upload,
                self.record.build_branch_query(branch_names_fullmatch_regex(upload.revisions)),
                overwrite=self._options.overwrite,
                report=log.info,
            )
        except (OSError, ValueError, UserError) as error:
            raise HubProblem("local", f"{source}: {error}") from error
        with self._record_lock:
            self.record.record_upload_and_drop_plans(
                planned.source, planned.step, commits, checksum
            )

    def _log_success_and_remove(self, planned: PlannedUpload) -> None:
        self._drop_plan_stage_and_checkpoint_hold(planned)
        log.info(
            "uploaded: step %d to %s, %s",
            planned.step,
            self._repository.url or self.record.repo_id,
            ", ".join(planned.revisions),
        )

    def _log_and_remove_replaced(self, newer: PlannedUpload, older: PlannedUpload) -> None:
        if newer != older:
            log.info("%s is not uploaded: %s takes its place", older.source, newer.source)
            self._drop_plan_stage_and_checkpoint_hold(older)

    def _remember_and_log_failure(self, failure: Failure[PlannedUpload]) -> None:
        self._problems[failure.task] = failure.problem
        when = "it is not tried again"
        if failure.retry_seconds is not None:
            when = f"it is tried again in {failure.retry_seconds:.0f} s"
        log.warning(
            "the upload of step %d failed: %s; %s",
            failure.task.step,
            failure.problem.message,
            when,
        )

    def write_record_or_warn(self) -> None:
        """Writes hub.json; an error costs a warning."""
        try:
            write_upload_record(self._run_folder, self.record)
        except OSError as error:
            log.warning("hub.json is not written: %s", error)

    def describe_problem_to_fix_before_push(self, planned: PlannedUpload) -> str:
        """What must change before an upload that was given up can succeed; empty: nothing."""
        problem = self._problems.get(planned)
        if problem is None or problem.is_worth_retrying:
            return ""
        if problem.reason != "taken":
            return f", once this is mended ({problem.message})"
        return (
            f": {problem.message}. Name another repository or --revision here, or replace that "
            "model with --overwrite"
        )

    def folder_to_push(self, planned: PlannedUpload) -> Path:
        """Where the files of an upload are: what was to be uploaded, or what is left of it."""
        source = self._run_folder / planned.source
        is_same = (
            has_checkpoint_manifest(source) or read_finished_step(self._run_folder) == planned.step
        )
        return source if is_same else stage_folder(self._run_folder, planned) / MODEL
