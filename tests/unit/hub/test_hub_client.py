"""Requests before an upload: the repository is created as asked, and whose its branches are."""

from dataclasses import replace

import pytest
from huggingface_hub import HfApi

from flame_accel.hub.hub_client import (
    BranchQuery,
    BranchState,
    check_write_access_and_create_if_missing,
    describe_branches,
)
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_upload import Upload, scan_for_token_then_upload_and_tag
from tests.helpers.hub_client import REPO

QUERY = BranchQuery(pattern=".*", run_id="mine", known={})


def test_the_repository_is_created_once_and_as_asked(local_hub):
    first = check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    assert first.created and first.private and local_hub.repository(REPO).private
    again = check_write_access_and_create_if_missing("model", must_be_private=True, query=QUERY)
    assert again.repo_id == REPO and not again.created


def test_a_public_repository_is_not_used_for_a_private_model(local_hub):
    HfApi().create_repo(REPO, private=False)
    with pytest.raises(HubProblem, match="is public"):
        check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    assert not check_write_access_and_create_if_missing(
        REPO, must_be_private=False, query=QUERY
    ).private


def test_a_branch_is_taken_if_other_weights_than_those_of_the_run_are_there(local_hub, tmp_path):
    api = HfApi()
    check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)

    def main(run_id: str = "mine") -> BranchState:
        return describe_branches(REPO, replace(QUERY, run_id=run_id))["main"]

    assert not main().is_taken
    api.upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"Plans")
    assert not main().is_taken and main().card == "Plans" and main().uploaded_card is None
    (tmp_path / "model.safetensors").write_bytes(b"first")
    (tmp_path / "README.md").write_text("Model")
    upload = Upload(
        folder=str(tmp_path),
        repo_id=REPO,
        revisions=("main",),
        tag=None,
        message="Model",
        run_id="mine",
    )
    commit = scan_for_token_then_upload_and_tag(upload)["main"]
    assert not main().is_taken and main("other").is_taken
    # edits of the card, and files of another kind, do not make it another model
    api.upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"Edited")
    api.upload_file(repo_id=REPO, path_in_repo="model.gguf", path_or_fileobj=b"converted")
    assert not main().is_taken
    assert (main().card, main().uploaded_card) == ("Edited", "Model")
    api.upload_file(repo_id=REPO, path_in_repo="model.safetensors", path_or_fileobj=b"second")
    assert main().is_taken
    api.delete_file("model.safetensors", REPO)
    assert not main("other").is_taken
    assert commit != main().commit == local_hub.repository(REPO).branches["main"]
