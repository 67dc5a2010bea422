"""What an upload finds on a branch: a model of another run, or a card that somebody has edited."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from flame_accel.hub.branch_upload import merge_cards_and_upload
from flame_accel.hub.hub_client import BranchQuery
from flame_accel.hub.hub_problem import HubProblem
from flame_accel.hub.hub_process import HubProcess
from flame_accel.hub.hub_upload import Upload
from tests.helpers.hub_client import REPO
from tests.helpers.hub_server import HubServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("Ours.\n")
    (folder / "model.safetensors").write_bytes(b"ours")
    return folder


def upload(folder: Path, *, overwrite: bool = False) -> dict[str, str]:
    query = BranchQuery(pattern="main|v1", run_id="ours", known={})
    request = Upload(
        folder=str(folder),
        repo_id=REPO,
        revisions=("main", "v1"),
        tag=None,
        message="Model",
        run_id=query.run_id,
    )
    return merge_cards_and_upload(HubProcess(), request, query, overwrite=overwrite, report=print)


def test_a_model_that_another_run_has_uploaded_meanwhile_stays(
    local_hub: HubServer, folder: Path
) -> None:
    local_hub.add_repository(REPO, {"model.safetensors": b"theirs"}, private=True)
    with pytest.raises(HubProblem, match="the branch main of tester/model holds") as raised:
        upload(folder)
    assert raised.value.reason == "taken" and not raised.value.is_worth_retrying
    assert local_hub.read_file(REPO, "model.safetensors") == b"theirs"
    commits = upload(folder, overwrite=True)
    assert commits == local_hub.repository(REPO).branches
    assert local_hub.read_file(REPO, "model.safetensors") == b"ours"


def test_an_edited_card_stays_and_one_as_it_was_uploaded_is_replaced(
    local_hub: HubServer, folder: Path
) -> None:
    local_hub.add_repository(REPO, private=True)
    upload(folder)
    (folder / "README.md").write_text("Ours, better.\n")
    upload(folder)
    assert local_hub.read_file(REPO, "README.md") == b"Ours, better.\n"
    edited = b"Ours, edited.\n"
    HfApi().upload_file(repo_id=REPO, path_in_repo="README.md", path_or_fileobj=edited)
    (folder / "model.safetensors").write_bytes(b"ours, later")
    upload(folder)
    assert local_hub.read_file(REPO, "README.md") == edited
    assert local_hub.read_file(REPO, "model.safetensors") == b"ours, later"
