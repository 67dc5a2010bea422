"""Uploads a run's model, a checkpoint or an exported model to the Hugging Face Hub.

What is uploaded is decided in `hub/uploaded_files` and `hub/upload_folder`; uploads during a run
are options of section hub.
"""

import argparse
import os
import signal
import tempfile
from functools import partial
from pathlib import Path

from flame_accel.commands.arguments import add_custom_modules_argument, parse_run_option
from flame_accel.commands.loaded_model import find_model_folder
from flame_accel.config import UsageError, UserError
from flame_accel.config.hub_options import STEP
from flame_accel.hub.access import access_error, check_access_and_create_repository
from flame_accel.hub.branch_upload import (
    branch_names_fullmatch_regex,
    format_push_command,
    merge_cards_and_upload,
)
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.hub_upload import Upload
from flame_accel.hub.token_scan import find_non_weights_file_with_token
from flame_accel.hub.upload_queue import retry_request_after_waits
from flame_accel.hub.upload_record import (
    RECORD_FILE,
    UploadRecord,
    read_recorded_repository_or_none,
    read_upload_record_or_empty,
    remove_needless_stages,
    write_upload_record,
)
from flame_accel.hub.uploaded_files import (
    checksum_of_model_files,
    find_run_folder_of_model,
    has_checkpoint_manifest,
    select_files_of_complete_model_or_raise,
)

ATTEMPTS_SECONDS = (2.0, 10.0, 30.0)
"""Waits before an upload that failed is tried again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "model",
        type=Path,
        help="a run folder (its hf/, or else its newest checkpoint), a checkpoint (.../step-N), or "
        "the folder of an exported model",
    )
    parser.add_argument(
        "repo_id",
        type=partial(parse_run_option, "hub.repo_id", required=True, where="REPO_ID"),
        help="model repository, as NAMESPACE/NAME, or NAME in your own namespace; created if "
        "missing",
    )
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", action="store_true", help="create a private repository (the default)"
    )
    visibility.add_argument(
        "--public", action="store_true", help="create a public repository, or use one"
    )
    for name, default, text in (
        ("revision", "main", "branch to upload to (main); {step} in it stands for the step"),
        ("tag", None, "tag for the commit; {step} in it stands for the step"),
    ):
        parse = partial(parse_run_option, f"hub.{name}", where=f"--{name}")
        parser.add_argument(f"--{name}", type=parse, default=default, help=text)
    parser.add_argument("--message", help="first line of the commit message")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model of another run on the branch"
    )
    parser.add_argument(
        "--include-logs",
        action="store_true",
        help="also upload metrics.jsonl, evaluations.jsonl, report.html and config.toml of the run",
    )
    add_custom_modules_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Uploads the model, and prints where it is."""
    folder = find_model_folder(arguments.model)
    selected = select_files_of_complete_model_or_raise(folder)
    if selected.left_out_line is not None:
        print(selected.left_out_line)
    with_token = find_non_weights_file_with_token(folder / name for name in selected.files)
    if with_token is not None:
        raise UserError(
            "contains your access token",
            where=str(with_token),
            remedy=f"remove it from {with_token.name}",
        )
    run_folder = find_run_folder_of_model(folder)
    if arguments.include_logs and run_folder is None:
        raise UsageError(
            "there are no logs: the model lies in no run folder",
            where=f"--include-logs of {folder}",
            remedy="choose a model in a run folder, or remove --include-logs",
        )
    replace_step_placeholder_in_revision_and_tag(arguments, folder, run_folder)
    command = format_push_command(
        arguments.model,
        arguments.repo_id,
        revision=arguments.revision,
        tag=arguments.tag,
        public=arguments.public,
        overwrite=arguments.overwrite,
        include_logs=arguments.include_logs,
        custom_modules=arguments.custom,
    )
    try:
        create_repository_upload_and_record_model(folder, run_folder, arguments, command)
    except OSError as error:
        # such as a disk that is full
        raise UserError(
            f"cannot be prepared for the upload: {error}",
            where=str(folder),
            remedy=f"mend that (TMPDIR is another place if its folder is read-only), and run "
            f"it again: {command}",
        ) from error
    except KeyboardInterrupt:
        raise UserError(
            "the upload was interrupted",
            where=str(folder),
            remedy=f"to continue the upload: {command}",
            exit_code=128 + signal.SIGINT,
        ) from None


def replace_step_placeholder_in_revision_and_tag(
    arguments_to_update: argparse.Namespace, folder: Path, run_folder: Path | None
) -> None:
    """Puts the step of a model in the place of {step} in the names of the branch and the tag.

    Raises:
        UsageError: No step of the model is known.
    """
    for name in ("revision", "tag"):
        text = getattr(arguments_to_update, name)
        if text is None or STEP not in text:
            continue
        step = find_step_or_none(folder, run_folder)
        if step is None:
            raise UsageError(
                f"the step of {folder} is not known",
                where=f"--{name} {text}",
                remedy=f"write the step in place of {STEP}",
            )
        setattr(arguments_to_update, name, text.replace(STEP, str(step)))


def find_step_or_none(folder: Path, run_folder: Path | None) -> int | None:
    """The step of a checkpoint, or the one after which the run of an export finished."""
    from flame_accel.hub.model_card import origin_of_checkpoint
    from flame_accel.observe.run_end import read_finished_step

    if has_checkpoint_manifest(folder):
        return origin_of_checkpoint(folder).step
    return read_finished_step(run_folder) if run_folder is not None else None


def create_repository_upload_and_record_model(
    folder: Path, run_folder: Path | None, arguments: argparse.Namespace, command: str
) -> None:
    """Uploads a model, records it in its run and prints where it is; errors name the command."""
    repository = check_access_and_create_repository(
        arguments.repo_id,
        private=not arguments.public,
        record=read_run_record_or_empty_else_identify_by_weights(
            folder, run_folder, arguments.repo_id
        ),
        branch_pattern=branch_names_fullmatch_regex([arguments.revision]),
        overwrite=arguments.overwrite,
        accept_begun_if_unreachable=False,
        model_folder=folder,
        push_command=command,
    )
    record = repository.record
    if repository.warning is not None:
        print(repository.warning)
    if run_folder is not None:
        # before the first commit says which run it is of
        record_push_unless_run_uploads_elsewhere(run_folder, record)

    from flame_accel.hub.upload_folder import (
        add_missing_code_card_logs_and_hide_paths,
        find_run_and_checkpoint_step,
        replace_stage_with_model_files,
    )
    from flame_accel.models import register_models

    register_models(arguments.custom)
    origin = find_run_and_checkpoint_step(folder)
    # hard links need the same filesystem; a colleague's folder may be read-only
    parent = folder.parent if os.access(folder.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".tmp-hub-", dir=parent) as temporary:
        stage = Path(temporary) / "model"
        replace_stage_with_model_files(folder, stage)
        checksum = checksum_of_model_files(stage)
        add_missing_code_card_logs_and_hide_paths(
            stage,
            origin.run_folder,
            origin,
            example_repo_id=repository.repo_id,
            example_revision=arguments.revision,
            include_logs=arguments.include_logs,
        )
        request = Upload(
            folder=str(stage),
            repo_id=repository.repo_id,
            revisions=(arguments.revision,),
            tag=arguments.tag,
            message=arguments.message or f"Model of {folder.name}",
            run_id=record.run_id,
        )
        query = record.build_branch_query(branch_names_fullmatch_regex(request.revisions))
        try:
            commits = retry_request_after_waits(
                lambda: merge_cards_and_upload(
                    HubProcess(), request, query, overwrite=arguments.overwrite, report=print
                ),
                ATTEMPTS_SECONDS,
            )
        except HubProblem as problem:
            raise access_error(problem, repository.repo_id, push_command=command) from problem
    commit = commits[arguments.revision][:8]
    print(f"uploaded {folder} to {repository.url}, {arguments.revision} (commit {commit})")
    step = find_step_or_none(folder, run_folder)
    if run_folder is not None and step is not None:
        source = os.path.relpath(folder.resolve(), run_folder.resolve())
        record.record_upload_and_drop_plans(source, step, commits, checksum)
        record_push_unless_run_uploads_elsewhere(run_folder, record)


def record_push_unless_run_uploads_elsewhere(run_folder: Path, record: UploadRecord) -> None:
    """Writes the run's record, unless the run uploads to another repository or is read-only."""
    recorded = read_recorded_repository_or_none(run_folder)
    if recorded in (None, record.repo_id) and os.access(run_folder, os.W_OK):
        write_upload_record(run_folder, record)
        remove_needless_stages(run_folder, record)


def read_run_record_or_empty_else_identify_by_weights(
    folder: Path, run_folder: Path | None, repo_id: str
) -> UploadRecord:
    """What was uploaded of a model's run; a model without one is known by its weights."""
    if run_folder is not None and (
        (run_folder / RECORD_FILE).is_file() or os.access(run_folder, os.W_OK)
    ):
        if not (run_folder / RECORD_FILE).is_file():
            print(f"{run_folder} holds no record of earlier uploads ({RECORD_FILE})")
        return read_upload_record_or_empty(run_folder, repo_id, report_damage=print)
    return UploadRecord(repo_id=repo_id, run_id=checksum_of_model_files(folder, ".safetensors"))
