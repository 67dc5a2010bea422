"""What `save_to_disk` wrote is read in place, split by split."""

import datasets
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.sources.table import Table
from tests.helpers.datasets_on_disk import FULL, opened, texts, write_saved, write_saved_dict


def test_what_lies_in_arrow_is_a_table_all_the_same(tmp_path):
    table = opened(write_saved(tmp_path), streaming=True)
    assert isinstance(table, Table)
    assert texts(table) == FULL


def test_a_saved_dict_has_its_splits(tmp_path):
    source = write_saved_dict(tmp_path, "train", "dev")
    assert texts(opened(source)) == ["train"]
    assert texts(opened(source, dataset_split="dev")) == ["dev"]
    with pytest.raises(UserError, match=r"no split 'validation'; there are: train, dev\n.*eval"):
        opened(source, section="evaluation")


def test_a_column_without_text_is_named(tmp_path):
    with pytest.raises(UserError, match="no column 'body'; there are: text"):
        opened(write_saved(tmp_path), text_column="body")
    datasets.Dataset.from_dict({"text": [1, 2]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"column 'text' holds Value\('int64'\), not text"):
        opened(str(tmp_path / "numbers"))
    datasets.Dataset.from_dict({"messages": [["a"], ["b"]]}).save_to_disk(tmp_path / "lists")
    with pytest.raises(UserError, match="column 'messages' holds List"):
        opened(str(tmp_path / "lists"))
