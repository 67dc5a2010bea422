"""A finished run is uploaded again where the Hub lacks its model, and left alone elsewhere."""

import pytest
from huggingface_hub import HfApi

from flame_accel.files import describe_files
from tests.helpers.hub_client import REPO


def test_a_finished_run_whose_model_is_on_the_hub_needs_neither_the_hub_nor_a_login(
    upload_run, local_hub, tmp_path, monkeypatch
):
    upload_run()
    before = describe_files(tmp_path / "run")
    upload_run(**{"optimizer.lr": 0.5})
    monkeypatch.delenv("HF_TOKEN")
    with local_hub.down():
        upload_run(**{"optimizer.lr": 0.5})
    assert describe_files(tmp_path / "run") == before


@pytest.mark.parametrize("is_deleted", [True, False])
def test_what_was_deleted_on_the_hub_by_hand_is_uploaded_again(
    upload_run, local_hub, tmp_path, is_deleted
):
    upload_run()
    api = HfApi()
    if is_deleted:
        api.delete_repo(REPO)
    else:
        api.delete_file("model.safetensors", REPO)
    upload_run()
    exported = (tmp_path / "run/hf/model.safetensors").read_bytes()
    assert local_hub.read_file(REPO, "model.safetensors", "main") == exported
