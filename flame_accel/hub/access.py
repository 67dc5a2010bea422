"""Checks before a run that its model can be uploaded: login, name, permissions, the repository.

Every mistake is found here, before the first step and before the run folder changes. A Hub that
does not answer ends only the start of a run that it has never accepted.
"""

from pathlib import Path
from typing import NamedTuple

from flame_accel.config import UserError
from flame_accel.hub.branch_upload import raise_hub_problem_if_branch_taken
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.upload_record import UploadRecord

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
WITHOUT_HUB = "start without hub.repo_id, and upload later with `flame-accel push`"
REMEDIES = {
    "offline": f"unset HF_HUB_OFFLINE, or {WITHOUT_HUB}",
    "no_token": f"{LOGIN}, with a token that can write",
    "bad_token": f"{LOGIN}, with a token that is valid",
    "read_only_token": f"{LOGIN}, with a token that can write",
    "no_permission": "choose a namespace that you can write to, or a token with more permissions",
    "missing": "choose a namespace that you can write to, or a token with more permissions",
    "public": "set hub.private to false if everybody may see the model, or choose another "
    "repository",
    "taken": "choose another hub.repo_id or hub.revision, or replace that model with "
    "--hub.overwrite",
}
"""What to do about a problem of a run, by its reason."""
PUSH_REMEDIES = REMEDIES | {
    "offline": "unset HF_HUB_OFFLINE",
    "public": "add --public if everybody may see the model, or choose another REPO_ID",
    "taken": "choose another REPO_ID or --revision, or replace that model with --overwrite",
}
"""The same of `flame-accel push`."""


class AcceptedRepository(NamedTuple):
    """Where a run uploads to."""

    repo_id: str
    """NAMESPACE/NAME."""
    url: str | None
    """None if the Hub did not answer now; it has accepted the run before."""
    private: bool | None
    record: UploadRecord
    """What was uploaded and planned before; empty for a new repository."""
    warning: str | None
    """What the run should say about it."""


def check_access_and_create_repository(
    repo_id: str,
    *,
    private: bool,
    record: UploadRecord,
    branch_pattern: str,
    overwrite: bool,
    accept_begun_if_unreachable: bool,
    model_folder: Path | None = None,
    push_command: str | None = None,
) -> AcceptedRepository:
    """Checks that the user may upload to a repository, and creates it if it does not exist.

    Args:
        repo_id: NAME or NAMESPACE/NAME.
        private: Whether the repository is to be private.
        record: What was uploaded to it before.
        branch_pattern: Regular expression for the names of the branches that will be uploaded to.
        overwrite: Whether models of other runs on them are replaced.
        accept_begun_if_unreachable: Whether a run that has uploaded may do so later if the Hub does
            not answer now.
        model_folder: Of the model that is to be uploaded, if it exists already: whatever run it is
            of, the same weights on the Hub may be uploaded again.
        push_command: What somebody has entered, for the error; None: it is a run.

    Raises:
        UserError: There can be no upload.
    """
    query = record.build_branch_query(branch_pattern)
    warning = None
    try:
        try:
            found = HubProcess().check_write_access_and_create_if_missing(
                repo_id, must_be_private=private, query=query
            )
        except HubProblem as problem:
            if not (problem.reason == "public" and record.has_begun()):
                raise
            # somebody has published it on purpose: this run has uploaded to it before
            found = HubProcess().check_write_access_and_create_if_missing(
                repo_id, must_be_private=False, query=query
            )
            warning = f"{found.url} is public by now"
        if not overwrite:
            raise_hub_problem_if_branch_taken(found.repo_id, found.branches, model_folder)
    except HubProblem as problem:
        if problem.is_worth_retrying and record.has_begun() and accept_begun_if_unreachable:
            warning = f"the Hub does not answer ({problem.message}): uploads are tried later"
            return AcceptedRepository(record.repo_id, None, None, record, warning)
        raise access_error(problem, repo_id, push_command=push_command) from problem
    if found.private and not private:
        warning = (
            f"{found.url} is private and stays so: an upload does not publish a repository that "
            f"exists; its visibility is changed at {found.url}/settings"
        )
    if found.created or found.repo_id != record.repo_id:
        # nothing of what was uploaded is there
        record = UploadRecord(repo_id=found.repo_id, run_id=record.run_id)
    return AcceptedRepository(found.repo_id, found.url, found.private, record, warning)


def access_error(problem: HubProblem, repo_id: str, *, push_command: str | None) -> UserError:
    """The error of a user whose model cannot be uploaded to a repository.

    Its exit code is 2, as for the configuration, unless starting again later may help.
    """
    where = f"hub.repo_id = {repo_id}" if push_command is None else f"REPO_ID = {repo_id}"
    if problem.is_worth_retrying:
        again = f"start again later, or {WITHOUT_HUB}"
        return UserError(
            f"the Hub does not answer: {problem.message}",
            where=where,
            remedy=again if push_command is None else f"run it again later: {push_command}",
        )
    if problem.reason == "local" and push_command is not None:
        return UserError(problem.message, remedy=f"mend that, and run it again: {push_command}")
    remedies = REMEDIES if push_command is None else PUSH_REMEDIES
    sentences = {
        "no_permission": f"you may not write to this repository: {problem.message}",
        "missing": f"you may not write to this repository: {problem.message}",
        "bad_token": f"the Hub does not accept the access token: {problem.message}",
    }
    return UserError(
        sentences.get(problem.reason, problem.message),
        where=where,
        remedy=remedies.get(problem.reason, "check the name, or choose another repository"),
        exit_code=2,
    )
