"""How a run records its datasets: names that mean the same everywhere, and no paths."""

from pathlib import Path

import pytest

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data import describe_evaluation_data, describe_training_data, open_data
from flame_accel.data.sources.dataset_descriptions import is_hub_dataset
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.tokens.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [
        ("org/data", True),
        ("data", True),
        ("python-stdlib", False),
        ("json", False),
        ("/nowhere/data", False),
        ("a/b/c", False),
    ],
)
def test_only_names_that_can_be_of_the_hub_are(name: str, on_hub: bool) -> None:
    assert is_hub_dataset(DatasetOptions(dataset=name)) == on_hub


def test_files_are_described_by_the_last_part_of_their_path(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(corpus.read_bytes())
    training = TrainingConfig(dataset=f"{corpus},{folder}", data_probs=(3.0, 1.0))
    evaluation = EvaluationConfig(dataset=str(corpus), held_out_share=0.2)
    data = open_data(training, evaluation, load_tokenizer("byte", trust_remote_code=False))
    first, second = describe_training_data(training, data)
    assert (first["name"], first["share"], first["documents"]) == (corpus.name, 0.75, 40)
    assert (second["name"], second["share"], second["on_hub"]) == ("texts", 0.25, False)
    validated = describe_evaluation_data(training, evaluation, data)
    assert validated is not None
    assert validated["name"] == corpus.name and validated["held_out_share"] == 0.2
    assert describe_evaluation_data(training, EvaluationConfig(), data) is None
