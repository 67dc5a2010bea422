"""No file with the access token is uploaded."""

import pytest

from flame_accel.hub.hub_client import BranchQuery, check_write_access_and_create_if_missing
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_upload import Upload, scan_for_token_then_upload_and_tag
from flame_accel.hub.token_scan import SEARCHED_BLOCK_BYTES, find_non_weights_file_with_token
from tests.helpers.hub_client import REPO
from tests.helpers.hub_server import WRITE_TOKEN

QUERY = BranchQuery(pattern=".*", run_id="mine", known={})


def test_the_token_is_found_where_two_blocks_meet_but_not_in_weights(local_hub, tmp_path):
    text = "x" * (SEARCHED_BLOCK_BYTES - 5) + WRITE_TOKEN
    for name in ("a.safetensors", "notes.txt"):
        (tmp_path / name).write_text(text)
    paths = [tmp_path / "a.safetensors"]
    assert find_non_weights_file_with_token(paths) is None
    assert find_non_weights_file_with_token([*paths, tmp_path / "notes.txt"]) == (
        tmp_path / "notes.txt"
    )


def test_a_file_with_the_access_token_is_not_uploaded(local_hub, tmp_path):
    check_write_access_and_create_if_missing(REPO, must_be_private=True, query=QUERY)
    (tmp_path / "notes.txt").write_text(f"export HF_TOKEN={WRITE_TOKEN}")
    request = Upload(
        folder=str(tmp_path),
        repo_id=REPO,
        revisions=("main",),
        tag=None,
        message="Model",
        run_id="mine",
    )
    with pytest.raises(HubProblem, match=r"notes\.txt contains your access token"):
        scan_for_token_then_upload_and_tag(request)
    assert "notes.txt" not in local_hub.file_names(REPO, "main")
