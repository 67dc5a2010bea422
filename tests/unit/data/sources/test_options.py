"""Options of several datasets, and those that a dataset has no use for."""

import pytest

from flame_accel.config import TrainingConfig
from flame_accel.config.errors import UserError
from flame_accel.data.sources.options import (
    DatasetOptions,
    data_probs_divided_by_sum,
    training_dataset_options,
)
from tests.helpers.datasets_on_disk import opened, write_one


def test_options_that_a_source_has_no_use_for_are_refused(tmp_path):
    source = write_one("a.txt", b"text")(tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.dataset_name, evaluation\.data_dir cannot"):
        opened(source, section="evaluation", dataset_name="x", data_dir="y")


def test_several_datasets_have_options_of_their_own():
    training = TrainingConfig(
        dataset="a, b/c ,d",
        dataset_name=",x,",
        data_files="1.jsonl,,*.txt",
        text_column="body",
        streaming=True,
        max_document_bytes=9,
    )
    common = {"text_column": "body", "streaming": True, "max_document_bytes": 9}
    assert training_dataset_options(training) == [
        DatasetOptions(dataset="a", data_files="1.jsonl", **common),
        DatasetOptions(dataset="b/c", dataset_name="x", **common),
        DatasetOptions(dataset="d", data_files="*.txt", **common),
    ]


def test_one_dataset_keeps_its_commas(tmp_path):
    [options] = training_dataset_options(TrainingConfig(dataset="a", data_files="1.txt, 2.txt"))
    assert options.data_files_list == ["1.txt", "2.txt"]
    path = write_one("a,b.txt", b"text")(tmp_path)
    assert [
        options.dataset for options in training_dataset_options(TrainingConfig(dataset=path))
    ] == [path]
    # too long for a file's name
    assert len(training_dataset_options(TrainingConfig(dataset=",".join(["name"] * 100)))) == 100


def test_shares_are_divided_by_their_sum():
    assert data_probs_divided_by_sum(TrainingConfig(dataset="a")) == (1.0,)
    assert data_probs_divided_by_sum(TrainingConfig(dataset="a", data_probs=(0.3,))) == (1.0,)
    assert data_probs_divided_by_sum(TrainingConfig(dataset="a,b", data_probs=(3, 1))) == (
        0.75,
        0.25,
    )
