"""The requests to the Hub before an upload: checks, creation of the repository, its branches.

Everything goes through huggingface_hub. The access token is in no answer, and in no error
(`hub_problem`). A run makes these requests in a process of its own (`hub_process`), which imports
little more than huggingface_hub. The upload itself is in `hub_upload`.
"""

import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flame_accel.hub.hub_problem import HubProblem, classify_error, errors_as_hub_problems

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Files that make a branch one that holds a model."""
CARD = "README.md"
RUN_LINE = re.compile(r"^flame_accel run (\w+)$", re.MULTILINE)
"""Line in the description of a commit that says which run has made it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchQuery:
    """Which branches to describe, and for whom."""

    pattern: str
    """Regular expression for their whole names."""
    run_id: str
    """The run that wants to upload."""
    known: dict[str, str]
    """By branch: the commit that the run remembers to have made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchState:
    """What a branch holds."""

    commit: str
    """Its newest commit."""
    is_taken: bool
    """Whether it holds a model that the run did not upload."""
    card: str | None
    """Its README.md."""
    uploaded_card: str | None
    """README.md as some run uploaded it last."""
    weights: dict[str, str | None] = field(default_factory=dict)
    """Names of its weights, and SHA-256 of their contents; empty if the run knows the commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRepository:
    """A repository that the user may write to."""

    repo_id: str
    """NAMESPACE/NAME."""
    url: str
    private: bool
    created: bool
    """Whether it did not exist before."""
    branches: dict[str, BranchState]
    """Those that were asked for and exist, by name."""


def check_write_access_and_create_if_missing(
    repo_id: str, *, must_be_private: bool, query: BranchQuery
) -> CheckedRepository:
    """Checks login and permissions, and creates the repository if it does not exist.

    Args:
        repo_id: NAME or NAMESPACE/NAME; without a namespace, the user's own.
        must_be_private: Whether a new repository is private; an existing one must be, then.
        query: Which of its branches to describe.

    Raises:
        HubProblem: There can be no upload to this repository, or the Hub cannot be asked.
    """
    from huggingface_hub import HfApi

    with errors_as_hub_problems():
        _check_online_and_token_set()
        api = HfApi()
        account = api.whoami()
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubProblem("read_only_token", f"the token of {account['name']} can only read")
        full_id = repo_id if "/" in repo_id else f"{account['name']}/{repo_id}"
        found = find_repository(full_id)
        if found is None:
            try:
                api.create_repo(full_id, private=must_be_private, exist_ok=True)
            except Exception as error:
                raise _classify_access_error(error, account) from error
        elif must_be_private and not found.private:
            raise HubProblem("public", f"{full_id} is public")
        try:
            _raise_http_error_unless_writable(full_id)
        except Exception as error:
            raise _classify_access_error(error, account) from error
        return CheckedRepository(
            repo_id=full_id,
            url=f"{api.endpoint}/{full_id}",
            private=must_be_private if found is None else bool(found.private),
            created=found is None,
            branches=describe_branches(full_id, query),
        )


def describe_branches(repo_id: str, query: BranchQuery) -> dict[str, BranchState]:
    """What those branches hold that are asked for and exist, by name.

    Raises:
        HubProblem: The Hub cannot be asked, or there is no such repository.
    """
    from huggingface_hub import HfApi

    with errors_as_hub_problems():
        _check_online_and_token_set()
        return {
            ref.name: _describe_branch_and_whether_taken(
                repo_id, ref.name, ref.target_commit, query
            )
            for ref in HfApi().list_repo_refs(repo_id).branches
            if re.fullmatch(query.pattern, ref.name)
        }


def _describe_branch_and_whether_taken(
    repo_id: str, branch: str, head: str, query: BranchQuery
) -> BranchState:
    from huggingface_hub import HfApi

    card = _read_card(repo_id, head)
    if head == query.known.get(branch):
        return BranchState(commit=head, is_taken=False, card=card, uploaded_card=card)
    weights = _list_weight_sha256_or_blob_ids(repo_id, head)
    for commit in HfApi().list_repo_commits(repo_id, revision=branch):
        run = RUN_LINE.search(commit.message)
        if run is not None:
            # somebody may have uploaded other weights since, without this package
            uploaded = _list_weight_sha256_or_blob_ids(repo_id, commit.commit_id)
            is_same = uploaded.items() <= weights.items()
            return BranchState(
                commit=head,
                is_taken=bool(weights) and not (is_same and run[1] == query.run_id),
                card=card,
                uploaded_card=_read_card(repo_id, commit.commit_id),
                weights=weights,
            )
    return BranchState(
        commit=head, is_taken=bool(weights), card=card, uploaded_card=None, weights=weights
    )


def _list_weight_sha256_or_blob_ids(repo_id: str, commit: str) -> dict[str, str | None]:
    """Weights at a commit: their names and SHA-256, or the ids of those that are not in LFS."""
    from huggingface_hub import HfApi

    found = HfApi().model_info(repo_id, revision=commit, files_metadata=True).siblings or []
    return {
        file.rfilename: file.lfs.sha256 if file.lfs is not None else file.blob_id
        for file in found
        if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in WEIGHTS)
    }


def _read_card(repo_id: str, commit: str) -> str | None:
    """README.md at a commit; None without one."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(repo_id, CARD, revision=commit)
    response = get_session().get(url, headers=build_hf_headers())
    try:
        hf_raise_for_status(response)
    except EntryNotFoundError:
        return None
    return response.content.decode("utf-8", "surrogateescape")


def _check_online_and_token_set() -> None:
    """Raises `HubProblem` if nobody is logged in, or the environment forbids to ask."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise HubProblem("offline", "HF_HUB_OFFLINE forbids connections")
    if get_token() is None:
        raise HubProblem("no_token", "there is no access token")


def find_repository(repo_id: str) -> "ModelInfo | None":
    """What the Hub says about a model repository; None if it does not exist or is hidden."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return HfApi().model_info(repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _raise_http_error_unless_writable(repo_id: str) -> None:
    """Raises the Hub's error if the user may not write to a repository."""
    from huggingface_hub import HfApi, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    # HfApi.auth_check asks about writing only in recent versions
    url = f"{HfApi().endpoint}/api/models/{repo_id}/auth-check/write"
    hf_raise_for_status(get_session().get(url, headers=build_hf_headers()))


def _classify_access_error(error: Exception, account: dict[str, Any]) -> HubProblem:
    """The problem of an error; one of permissions says only who is logged in."""
    problem = classify_error(error)
    if problem.reason not in ("no_permission", "missing", "bad_token"):
        return problem
    names = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    return HubProblem(
        "no_permission",
        f"you are logged in as {names[0]}"
        + (f" (organizations: {', '.join(names[1:])})" if names[1:] else ""),
    )
