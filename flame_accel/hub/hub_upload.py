"""The request to the Hub that uploads a folder, unless a file of it holds the access token.

The requests that come before it are those of `hub_client`, the process that makes it is that of
`hub_process`, and what is uploaded is decided in `upload_folder`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from flame_accel.hub.hub_client import find_repository
from flame_accel.hub.hub_problem import HubProblem, errors_as_hub_problems
from flame_accel.hub.token_scan import find_non_weights_file_with_token

STALE_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
"""Weights of an earlier upload, which `from_pretrained` might prefer to the new ones."""
CommitByBranch = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A folder to upload, and where to."""

    folder: str
    """All of its files are uploaded; links to files are followed."""
    repo_id: str
    revisions: tuple[str, ...]
    """Branches; created if they do not exist."""
    tag: str | None
    """Set to the commit on the first branch."""
    message: str
    """First line of the commit message."""
    run_id: str
    """The run that the model belongs to."""
    parents: CommitByBranch = field(default_factory=dict)
    """By branch: its newest commit, if the upload may only follow that one."""


def scan_for_token_then_upload_and_tag(request: Upload) -> CommitByBranch:
    """Uploads a folder and returns the commit on each branch.

    What an interrupted upload of the same files has transferred is not transferred again, and files
    that are the same there are left alone.

    Raises:
        HubProblem: It did not get through.
    """
    from huggingface_hub import HfApi

    folder = Path(request.folder)
    with errors_as_hub_problems():
        found = find_non_weights_file_with_token(
            path for path in sorted(folder.rglob("*")) if path.is_file()
        )
        if found is not None:
            raise HubProblem("local", f"{found.relative_to(folder)} contains your access token")
        api = HfApi()
        # one question without retries: a Hub that is down is noticed at once
        if find_repository(request.repo_id) is None:
            raise HubProblem("missing", f"{request.repo_id} does not exist any more")
        commits: CommitByBranch = {}
        for revision in request.revisions:
            if revision != "main" and revision not in request.parents:
                # without the model that main may hold
                first = api.list_repo_commits(request.repo_id)[-1].commit_id
                api.create_branch(request.repo_id, branch=revision, revision=first, exist_ok=True)
            commit = api.upload_folder(
                repo_id=request.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=request.message,
                commit_description=f"flame_accel run {request.run_id}",
                parent_commit=request.parents.get(revision),
                delete_patterns=list(STALE_WEIGHTS),
            )
            commits[revision] = commit.oid
        if request.tag is not None:
            _create_or_move_tag(request.repo_id, request.tag, commits[request.revisions[0]])
        return commits


def _create_or_move_tag(repo_id: str, tag: str, commit: str) -> None:
    """Sets a tag, also one that exists already at another commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    existing = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if existing.get(tag) == commit:
        return
    if tag in existing:
        api.delete_tag(repo_id, tag=tag)
    api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
