"""Rows that would cut a question from its answer are refused before anything is opened."""

from dataclasses import replace

from flame_accel.config.run_options import EvaluationConfig
from flame_accel.config.schema import Config
from flame_accel.config.synthetic_consistency import find_synthetic_task_problems
from flame_accel.config.training_options import TrainingConfig

FITS = TrainingConfig(
    dataset="synthetic:mqar:pairs=4:length=16", varlen=True, packing="best_fit", seq_len=32
)


def rules(training: TrainingConfig, evaluation: str | None = None) -> list[str]:
    config = Config(training=training, evaluation=EvaluationConfig(dataset=evaluation))
    return [broken.rule for broken in find_synthetic_task_problems(config)]


def test_whole_documents_in_rows_are_accepted() -> None:
    assert rules(FITS) == []
    assert rules(replace(FITS, context_len=16), "synthetic:mqar:length=4096") == []
    assert rules(TrainingConfig(dataset="python-stdlib")) == []


def test_rows_that_cut_documents_are_refused() -> None:
    for change in ({"varlen": False}, {"packing": "sequential"}):
        (rule,) = rules(replace(FITS, **change))
        assert rule.startswith("would cut documents of synthetic:mqar")
    for change in ({"seq_len": 12}, {"context_len": 12}):
        (rule,) = rules(replace(FITS, **change))
        assert rule == "is 12, and documents of synthetic:mqar:pairs=4:length=16 have 16 tokens"


def test_a_wrong_name_is_refused_in_training_and_validation() -> None:
    assert rules(replace(FITS, dataset="python-stdlib,synthetic:mqa")) == ["there is no task 'mqa'"]
    assert rules(FITS, "synthetic:mqa") == ["there is no task 'mqa'"]
