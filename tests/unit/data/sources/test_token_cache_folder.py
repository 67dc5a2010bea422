"""A token cache is opened as a dataset without splits, and may be divided."""

from pathlib import Path

import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.sources.held_out import HeldOut
from flame_accel.data.sources.token_cache_folder import TokenCacheFolder
from flame_accel.data.stages import RecordSource
from tests.helpers.datasets_on_disk import opened, pair, write_one


def folder_of(source: RecordSource) -> Path:
    assert isinstance(source, TokenCacheFolder)
    return source.folder


def test_a_token_cache_is_its_folder(tmp_path):
    write_one("flame_accel_tokens.json", b"{}")(tmp_path)
    assert folder_of(opened(str(tmp_path))) == tmp_path
    assert folder_of(opened(str(tmp_path), dataset_split="train", streaming=True)) == tmp_path
    with pytest.raises(UserError, match=r"no split 'test'; there are: train \(all of it\)"):
        opened(str(tmp_path), dataset_split="test")
    with pytest.raises(UserError, match=r"training\.data_files cannot narrow"):
        opened(str(tmp_path), data_files="*.tokens")


def test_a_token_cache_is_divided_as_well(tmp_path):
    write_one("flame_accel_tokens.json", b"{}")(tmp_path)
    [training], evaluation = pair({"dataset": str(tmp_path)}, {"dataset": f"{tmp_path}/"})
    assert folder_of(training.source) == folder_of(evaluation.source) == tmp_path
    assert training.held_out == HeldOut(0.1, "training")
    assert evaluation.held_out == HeldOut(0.1, "evaluation")
