"""Fixture: the folder of a model that is not one of torch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.model_files import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files `MODEL`, which are nearly empty."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in MODEL:
        (folder / name).write_text("{}")
    save_file({"weight": torch.ones(8)}, folder / "model.safetensors")
    return folder
