"""Several datasets in one option, and the entries of each in the options that go with it."""

from pathlib import Path

import pytest

from flame_accel.config import TrainingConfig, dataset_names, split_per_dataset_option


@pytest.mark.parametrize(
    ("dataset", "names"),
    [(None, []), ("a", ["a"]), ("a, b,c", ["a", "b", "c"]), ("a,,b", ["a", "", "b"])],
)
def test_datasets_are_separated_by_commas(dataset: str | None, names: list[str]) -> None:
    assert dataset_names(TrainingConfig(dataset=dataset)) == names


def test_an_existing_path_with_a_comma_is_one_dataset(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert dataset_names(TrainingConfig(dataset=f"{tmp_path}/a,b")) == [f"{tmp_path}/a,b"]


def test_each_dataset_has_its_own_entry_and_an_empty_one_is_none() -> None:
    training = TrainingConfig(dataset="a,b", dataset_name="x, ")
    assert split_per_dataset_option(training, "dataset_name") == ["x", None]
    assert split_per_dataset_option(training, "data_dir") == [None, None]


def test_the_entry_of_a_single_dataset_may_have_commas() -> None:
    training = TrainingConfig(dataset="a", data_files="x,y")
    assert split_per_dataset_option(training, "data_files") == ["x,y"]
