"""The uploads of a run: which checkpoints and exports, where to, and what is said about them.

Nothing waits but the check before the run and the end of it, and no error of an upload ends it.
When an upload is made is decided in `upload_queue`, what it consists of in `contents`.
"""

import re
import signal
import threading
from pathlib import Path

from accelerate import Accelerator

from flame_accel import files
from flame_accel.config import HubConfig, UserError
from flame_accel.config.hub_options import STEP
from flame_accel.hub.access import AcceptedRepository, check_access_and_create_repository
from flame_accel.hub.branch_upload import (
    branch_names_fullmatch_regex,
    format_push_command,
    merge_cards_and_upload,
)
from flame_accel.hub.contents import (
    add_missing_code_card_logs_and_hide_paths,
    find_run_and_checkpoint_step,
    replace_stage_with_model_files,
)
from flame_accel.hub.hub_client import Upload
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.hub.selection import checksum_of_model_files, has_checkpoint_manifest
from flame_accel.hub.upload_queue import Failure, UploadQueue
from flame_accel.hub.upload_record import (
    PlannedUpload,
    UploadRecord,
    read_upload_record_or_empty,
    remove_needless_stages,
    stage_folder,
    write_upload_record,
)
from flame_accel.observe import get_logger
from flame_accel.observe.run_folder import read_finished_step
from flame_accel.parallel import run_on_main_and_broadcast

MODEL = "model"
"""Folder of the model's files in the folder of an upload."""
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
        self._process = HubProcess()
        self._repository: AcceptedRepository | None = None
        # the record is changed by the run and by the thread of the queue
        self._record_lock = threading.RLock()
        self._queue: UploadQueue[PlannedUpload] = UploadQueue(
            self._prepare_and_upload,
            replaces=PlannedUpload.covers_tag_and_branches_of,
            abort=self._process.kill_and_refuse_requests,
            report_success=self._log_success_and_remove,
            report_failure=self._report_failure,
            report_replaced=self._log_and_remove_replaced,
        )
        self._checkpoints_in_use: set[Path] = set()
        self._problems: dict[PlannedUpload, HubProblem] = {}
        """The last one of each upload that has failed."""

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
                record=read_upload_record_or_empty(self._run_folder, repo_id, report=log.warning),
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
            self._repository = accepted

    def resume_planned_uploads(self, checkpoints_in_use_to_update: set[Path]) -> None:
        """Makes the uploads that an earlier start of the run planned and did not finish.

        Args:
            checkpoints_in_use_to_update: Gets those that must not be deleted for the time being.
        """
        if self._repository is None:
            return
        self._checkpoints_in_use = checkpoints_in_use_to_update
        remove_needless_stages(self._run_folder, self._record)
        for planned in list(self._record.planned):
            log.info("the upload of step %d was interrupted and is made now", planned.step)
            self._stage_record_and_queue(planned)

    def count_and_upload_due_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Uploads the model of a checkpoint if the options ask for it. Returns at once."""
        if self._repository is None or self._options.when == "end":
            return
        self._record.checkpoints_since_upload += 1
        interval = 1 if self._options.when == "checkpoint" else int(self._options.when)
        if self._record.checkpoints_since_upload >= interval:
            self._record.checkpoints_since_upload = 0
            self._stage_record_and_queue(
                self._planned_upload(checkpoint, step, (self._fill_step_into_revision(step),))
            )
        else:
            self._write_record()

    def upload_export(self, folder: Path, step: int) -> None:
        """Uploads the exported model. Returns at once."""
        if self._repository is not None:
            self._stage_record_and_queue(
                self._planned_upload(folder, step, self._fixed_or_main_and_step_branches(step))
            )

    def upload_missing_of_finished_run(self) -> None:
        """Uploads what the Hub lacks of a run that has finished. Every rank must call it."""
        exported, step = self._run_folder / "hf", read_finished_step(self._run_folder)
        if self._options.repo_id is None or step is None or not exported.is_dir():
            return
        if not run_on_main_and_broadcast(
            self._accelerator, lambda: self._remove_stages_and_ask_if_export_on_hub(exported, step)
        ):
            self.check_access_and_create_repository()
            self.resume_planned_uploads(set())
            self.upload_export_wait_then_abort(exported, step)

    def _remove_stages_and_ask_if_export_on_hub(self, exported: Path, step: int) -> bool:
        """Whether the Hub holds the exported model, as far as it can be asked."""
        record = read_upload_record_or_empty(
            self._run_folder, str(self._options.repo_id), report=log.warning
        )
        export = self._planned_upload(exported, step, self._fixed_or_main_and_step_branches(step))
        if record.planned or not record.has_uploaded(export, checksum_of_model_files(exported)):
            return False
        remove_needless_stages(self._run_folder, record)
        query = record.build_branch_query(branch_names_fullmatch_regex(export.revisions))
        try:
            branches = self._process.describe_branches(record.repo_id, query)
        except HubProblem as problem:
            if problem.reason == "missing":
                return False
            # there is nothing to do that needs the Hub or a login
            log.warning("%s was uploaded; nobody asked the Hub: %s", exported, problem.message)
            return True
        heads = {name: state.commit for name, state in branches.items()}
        if any(record.finished[name].commit != heads.get(name) for name in export.revisions):
            return False
        log.info("%s is on the Hub already: %s", exported, record.repo_id)
        return True

    def upload_export_wait_then_abort(self, folder: Path, step: int) -> None:
        """Uploads the exported model, and waits a limited time for what is being uploaded.

        Says what is missing then, and how to upload it; the run has ended well all the same.

        Raises:
            SystemExit: The user has interrupted it; its code is that of Ctrl-C.
        """
        if self._repository is None:
            return
        self.upload_export(folder, step)
        if self._queue.unfinished():
            log.info("waiting for the last upload, at most %d s", self._options.wait_seconds)
        interrupted = False
        try:
            missing = self._queue.wait_and_list_unfinished_or_given_up(self._options.wait_seconds)
        except KeyboardInterrupt:
            interrupted, missing = True, self._queue.unfinished()
        self.abort()
        for planned in missing:
            folder = self._folder_to_push(planned)
            log.warning(
                "not on the Hub: step %d (%s). To upload it%s:\n%s",
                planned.step,
                folder,
                self._describe_problem_to_fix_before_push(planned),
                "\n".join(
                    f"  {command}" for command in self._format_push_commands(folder, planned)
                ),
            )
        if interrupted:
            raise SystemExit(128 + signal.SIGINT)

    def _describe_problem_to_fix_before_push(self, planned: PlannedUpload) -> str:
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

    def abort(self) -> None:
        """Ends what is being uploaded; a restart of the run continues with it."""
        if self._repository is not None:
            self._queue.abort_and_close()

    @property
    def _record(self) -> UploadRecord:
        assert self._repository is not None
        return self._repository.record

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

    def _stage_record_and_queue(self, planned: PlannedUpload) -> None:
        """Links the files, so that pruning does not remove them, and leaves the rest to the queue.

        Where there are no hard links the queue's thread copies them, and until then the checkpoint
        is not pruned. An error here costs an upload and not the run.
        """
        if planned in self._queue.unfinished():
            return
        source = self._run_folder / planned.source
        staged = stage_folder(self._run_folder, planned) / MODEL
        try:
            if not staged.is_dir():
                replace_stage_with_model_files(source, staged, files.link_file)
        except OSError:
            self._checkpoints_in_use.add(source)
        except UserError as error:
            log.warning("step %d is not uploaded: %s", planned.step, error)
            self._drop_plan_stage_and_checkpoint_hold(planned)
            return
        with self._record_lock:
            if planned not in self._record.planned:
                self._record.planned.append(planned)
            self._write_record()
        self._queue.add(planned)

    def _drop_plan_stage_and_checkpoint_hold(self, planned: PlannedUpload) -> None:
        """Removes an upload that is made, or that is never made, from record and disk."""
        with self._record_lock:
            if planned in self._record.planned:
                self._record.planned.remove(planned)
            self._write_record()
            remove_needless_stages(self._run_folder, self._record)
            if all(planned.source != other.source for other in self._record.planned):
                self._checkpoints_in_use.discard(self._run_folder / planned.source)

    def _prepare_and_upload(self, planned: PlannedUpload) -> None:
        """Called by the queue's thread; raises `HubProblem`."""
        stage = stage_folder(self._run_folder, planned)
        source = self._run_folder / planned.source
        staged, checksum_file = stage / MODEL, stage / "checksum"
        try:
            if not staged.is_dir():
                replace_stage_with_model_files(source, staged)
                self._checkpoints_in_use.discard(source)
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
                example_repo_id=self._record.repo_id,
                example_revision="main" if "main" in planned.revisions else planned.revisions[0],
                include_logs=self._options.include_logs,
            )
            upload = Upload(
                folder=str(staged),
                repo_id=self._record.repo_id,
                revisions=planned.revisions,
                tag=planned.tag,
                message=planned.message,
                run_id=self._record.run_id,
            )
            commits = merge_cards_and_upload(
                self._process,
                upload,
                self._record,
                overwrite=self._options.overwrite,
                report=log.info,
            )
        except (OSError, ValueError, UserError) as error:
            raise HubProblem("local", f"{source}: {error}") from error
        with self._record_lock:
            self._record.record_upload_and_drop_plans(
                planned.source, planned.step, commits, checksum
            )

    def _log_success_and_remove(self, planned: PlannedUpload) -> None:
        self._drop_plan_stage_and_checkpoint_hold(planned)
        assert self._repository is not None
        log.info(
            "uploaded: step %d to %s, %s",
            planned.step,
            self._repository.url or self._record.repo_id,
            ", ".join(planned.revisions),
        )

    def _log_and_remove_replaced(self, newer: PlannedUpload, older: PlannedUpload) -> None:
        if newer != older:
            log.info("%s is not uploaded: %s takes its place", older.source, newer.source)
            self._drop_plan_stage_and_checkpoint_hold(older)

    def _report_failure(self, failure: Failure[PlannedUpload]) -> None:
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

    def _write_record(self) -> None:
        try:
            write_upload_record(self._run_folder, self._record)
        except OSError as error:
            log.warning("hub.json is not written: %s", error)

    def _folder_to_push(self, planned: PlannedUpload) -> Path:
        """Where the files of an upload are: what was to be uploaded, or what is left of it."""
        source = self._run_folder / planned.source
        is_same = (
            has_checkpoint_manifest(source) or read_finished_step(self._run_folder) == planned.step
        )
        return source if is_same else stage_folder(self._run_folder, planned) / MODEL

    def _format_push_commands(self, folder: Path, planned: PlannedUpload) -> list[str]:
        """What uploads the same by hand: a command for each branch."""
        return [
            format_push_command(
                folder,
                self._record.repo_id,
                revision=revision,
                tag=planned.tag if revision == planned.revisions[0] else None,
                public=not self._options.private,
                overwrite=self._options.overwrite,
                include_logs=self._options.include_logs,
                custom_modules=self._custom_modules,
            )
            for revision in planned.revisions
        ]
