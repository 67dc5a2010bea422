"""The upload of a folder that is ready for it: to branches that may take it, and with their cards.

What belongs to another run is not replaced, and what somebody wrote into the card on the Hub stays.
The requests are in `hub_client` and `hub_upload`; what the folder consists of, in `upload_folder`.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flame_accel import files
from flame_accel.hub.card_edits import combine_with_card_on_hub
from flame_accel.hub.hub_client import CARD, BranchQuery, BranchState
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.hub_upload import CommitByBranch, Upload


def branch_names_fullmatch_regex(names: Iterable[str]) -> str:
    """A regular expression that these names match, and nothing else."""
    return "|".join(map(re.escape, names))


def format_push_command(
    model: Path,
    repo_id: str,
    *,
    revision: str,
    tag: str | None,
    public: bool,
    overwrite: bool,
    include_logs: bool,
    custom_modules: Sequence[str],
) -> str:
    """The command line that uploads a model; the arguments are those of `flame-accel push`."""
    words = ["flame-accel", "push", str(model), repo_id, "--revision", revision]
    words += ["--tag", tag] if tag is not None else []
    words += ["--public"] if public else []
    words += ["--overwrite"] if overwrite else []
    words += ["--include-logs"] if include_logs else []
    for module in custom_modules:
        words += ["--custom", module]
    return shlex.join(words)


def raise_hub_problem_if_branch_taken(
    repo_id: str, branches: Mapping[str, BranchState], model_folder: Path | None
) -> None:
    """Raises `HubProblem` if a branch holds a model of another run, with other weights.

    Args:
        repo_id: The repository.
        branches: By name: what they hold.
        model_folder: Of the model that is to be uploaded; None if it does not exist yet.
    """
    taken = [
        name
        for name, state in branches.items()
        if state.is_taken
        and not (model_folder and _all_sha256_known_and_equal(model_folder, state.weights))
    ]
    if taken:
        raise HubProblem(
            "taken",
            f"the branch {taken[0]} of {repo_id} holds a model that this run did not upload",
        )


def _all_sha256_known_and_equal(folder: Path, sha256_by_name: Mapping[str, str | None]) -> bool:
    from huggingface_hub.utils.sha import sha_fileobj

    for name, sha256 in sha256_by_name.items():
        if not (folder / name).is_file():
            return False
        with (folder / name).open("rb") as file:
            if sha_fileobj(file).hex() != sha256:
                return False
    return True


def merge_cards_and_upload(
    process: HubProcess,
    upload: Upload,
    query: BranchQuery,
    *,
    overwrite: bool,
    report: Callable[[str], None],
) -> CommitByBranch:
    """Uploads a folder, whose card gets what somebody wrote into those on the Hub.

    Args:
        process: Makes the requests.
        upload: What to upload; its `parents` are found here.
        query: For the branches of the upload, with what the run has uploaded before.
        overwrite: Whether a model of another run is replaced.
        report: Told what the user should know.

    Returns:
        The commit on each branch.

    Raises:
        HubProblem: It did not get through.
        OSError: The card cannot be read or written.
    """
    branches = process.describe_branches(upload.repo_id, query)
    if not overwrite:
        raise_hub_problem_if_branch_taken(upload.repo_id, branches, Path(upload.folder))
    path = Path(upload.folder) / CARD
    for name, state in branches.items():
        before = path.read_bytes().decode("utf-8", "surrogateescape")
        card = combine_with_card_on_hub(before, state.card, state.uploaded_card)
        if card.kept:
            kept = ", ".join(card.kept)
            report(f"{upload.repo_id}, {name}: README.md was edited there, and keeps: {kept}")
        if card.text != before:
            # in place of the link, not through it
            files.write_bytes_atomically(path, card.text.encode("utf-8", "surrogateescape"))
    parents = {name: state.commit for name, state in branches.items()}
    return process.scan_for_token_then_upload_and_tag(replace(upload, parents=parents))
