"""The upload of a folder: what it replaces, and what it never overwrites or sends."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from flame_accel.hub.hub_client import (
    BranchQuery,
    check_write_access_and_create_if_missing,
    describe_branches,
)
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_upload import (
    Upload,
    scan_for_token_then_upload_and_tag,
)
from tests.helpers.hub_client import REPO

QUERY = BranchQuery(pattern=".*", run_id="mine", known={})


def upload_of(folder: Path, **changes: Any) -> Upload:
    fields: dict[str, Any] = {"revisions": ("main",), "tag": None, "message": "Model"}
    return Upload(folder=str(folder), repo_id=REPO, **{**fields, "run_id": "mine", **changes})


def test_an_upload_replaces_the_weights_of_an_earlier_one(local_hub, tmp_path):
    check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    request = upload_of(tmp_path, revisions=("main", "step-3"), tag="v1")
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"first")
    scan_for_token_then_upload_and_tag(request)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model.safetensors")
    scan_for_token_then_upload_and_tag(request)
    for revision in request.revisions:
        names = local_hub.file_names(REPO, revision)
        assert "model.safetensors" in names
        assert "model-00001-of-00001.safetensors" not in names
    assert local_hub.read_file(REPO, "model.safetensors", "v1") == b"first"


def test_a_new_branch_does_not_hold_the_model_of_main(local_hub, tmp_path):
    check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    (tmp_path / "config.json").write_text("{}")
    scan_for_token_then_upload_and_tag(upload_of(tmp_path))
    local_hub.fail_next(with_status=403, method="POST", path_contains="preupload")
    with pytest.raises(HubProblem):
        scan_for_token_then_upload_and_tag(upload_of(tmp_path, revisions=("v2",)))
    assert local_hub.file_names(REPO, "v2") == []


def test_what_somebody_commits_in_the_meantime_is_not_overwritten(local_hub, tmp_path):
    check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    head = describe_branches(REPO, QUERY)["main"].commit
    HfApi().upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=b"Edited")
    (tmp_path / "README.md").write_text("Model")
    with pytest.raises(HubProblem, match="412") as raised:
        scan_for_token_then_upload_and_tag(upload_of(tmp_path, parents={"main": head}))
    assert raised.value.is_worth_retrying
    assert local_hub.read_file(REPO, "README.md") == b"Edited"
