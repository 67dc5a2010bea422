"""A run continues from a model on the Hub, at the revision that it names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from flame_accel.config import UserError
from tests.helpers.hub_server import HubServer
from tests.helpers.runs import SHORT_RUN, read_log

REPO = "tester/continued"


def test_weights_config_and_tokenizer_are_those_of_the_revision(
    local_hub: HubServer, train_here: Any, flags: Any, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    train_here(flags(**SHORT_RUN, **{"job.dump_folder": first}))
    api = HfApi()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=first / "hf")
    commit = api.model_info(REPO).sha
    assert commit is not None
    # what main holds later is another model
    api.delete_file("model.safetensors", REPO)

    continued = {
        "model.config": None,
        "model.tokenizer_path": None,
        # too small to change a bit
        "optimizer.lr": 1e-30,
        "job.dump_folder": tmp_path / "second",
    }
    train_here(
        flags(**SHORT_RUN, **continued, **{"checkpoint.initial_load_path": f"{REPO}@{commit}"})
    )
    weights = load_file(first / "hf/model.safetensors")
    for name, weight in load_file(tmp_path / "second/hf/model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    log = read_log(tmp_path / "second")
    assert f"starting with the weights of {REPO}@{commit}" in log and "snapshots" not in log
    for revision, message in (("v9", "has no revision 'v9'"), ("main", "no safetensors")):
        with pytest.raises(UserError, match=rf"{REPO}@{revision}: .*{message}"):
            train_here(
                flags(
                    **SHORT_RUN,
                    **{**continued, "job.dump_folder": tmp_path / "third"},
                    **{"checkpoint.initial_load_path": f"{REPO}@{revision}"},
                )
            )
