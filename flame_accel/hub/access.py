"""Checks before a run that its model can be uploaded: login, name, permissions, the repository.

Every mistake is found here, before the first step and before the run folder changes. A Hub that
does not answer ends only the start of a run that it has never accepted.
"""

from pathlib import Path
from typing import NamedTuple

from flame_accel.config import UserError
from flame_accel.hub.hub_client import CheckedRepository, HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.upload_record import UploadRecord, read_record

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
WITHOUT_HUB = "start without hub.repo_id, and upload later with `flame-accel push`"
REMEDIES = {
    "offline": f"unset HF_HUB_OFFLINE, or {WITHOUT_HUB}",
    "no_token": f"{LOGIN}, with a token that can write",
    "bad_token": f"{LOGIN}, with a token that is valid",
    "read_only_token": f"{LOGIN}, with a token that can write",
    "no_permission": "choose a namespace that you can write to, or a token with more permissions",
    "missing": "choose a namespace that you can write to, or a token with more permissions",
    "public": "set hub.private to false (--public of `flame-accel push`) if everybody may see the "
    "model, or choose another repository",
}
"""What to do about a problem, by its reason."""


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


def check_hub_access(
    repo_id: str, *, private: bool, run_folder: Path, where: str = "hub.repo_id"
) -> AcceptedRepository:
    """Checks that the user may upload to a repository, and creates it if it does not exist.

    Args:
        repo_id: NAME or NAMESPACE/NAME.
        private: Whether the repository is to be private.
        run_folder: Says what was uploaded before; nothing in it is changed.
        where: The option that names the repository.

    Raises:
        UserError: There can be no upload.
    """
    try:
        found = HubProcess().check_repository(repo_id, private=private)
    except HubProblem as problem:
        known = read_record(run_folder, repo_id)
        if known is not None and problem.is_worth_retrying:
            warning = f"the Hub does not answer ({problem.message}): uploads are tried later"
            return AcceptedRepository(known.repo_id, None, None, known, warning)
        if known is not None and problem.reason == "public":
            # somebody has published it on purpose: this run has uploaded to it before
            found = HubProcess().check_repository(repo_id, private=False)
            return _accept(found, run_folder, f"{found.url} is public by now")
        raise access_error(problem, repo_id, where=where) from problem
    warning = None
    if found.private and not private:
        warning = (
            f"{found.url} is private and stays so: an upload does not publish a repository that "
            f"exists; its visibility is changed at {found.url}/settings"
        )
    return _accept(found, run_folder, warning)


def _accept(found: CheckedRepository, run_folder: Path, warning: str | None) -> AcceptedRepository:
    record = None if found.created else read_record(run_folder, found.repo_id)
    return AcceptedRepository(
        found.repo_id,
        found.url,
        found.private,
        record or UploadRecord(repo_id=found.repo_id),
        warning,
    )


def access_error(problem: HubProblem, repo_id: str, *, where: str) -> UserError:
    """The error of a user whose model cannot be uploaded to a repository.

    Its exit code is 2, as for the configuration, unless starting again later may help.
    """
    if problem.is_worth_retrying:
        return UserError(
            f"the Hub does not answer: {problem.message}",
            where=f"{where} = {repo_id}",
            remedy=f"start again later, or {WITHOUT_HUB}",
        )
    sentences = {
        "no_permission": f"you may not write to this repository: {problem.message}",
        "missing": f"you may not write to this repository: {problem.message}",
        "bad_token": f"the Hub does not accept the access token: {problem.message}",
    }
    return UserError(
        sentences.get(problem.reason, problem.message),
        where=f"{where} = {repo_id}",
        remedy=REMEDIES.get(problem.reason, "check the name, or choose another repository"),
        exit_code=2,
    )
