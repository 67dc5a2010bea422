"""Laws of evaluation: it changes nothing of the training, and no number of ranks changes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flame_accel.evaluation.final_report import EXPORTED_MODEL
from flame_accel.observe.evaluations_file import Evaluation, read_evaluations
from tests.helpers.runs import SHORT_RUN, launch, model_digests, read_losses, read_records

Flags = Callable[..., list[str]]
TrainHere = Callable[[list[str]], None]
METRIC = """
import datasets
import evaluate


class Agreement(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        same = sum(a == b for a, b in zip(predictions, references))
        return {"agreement": same / len(references)}
"""


def write_texts(path: Path, count: int) -> Path:
    texts = [f"text {i}: " + "hello world " * (i * 5 % 17) for i in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def evaluation(tmp_path: Path) -> dict[str, Any]:
    """The options of an evaluation with all there is: sets, the user's metric, long contexts."""
    (tmp_path / "agreement.py").write_text(METRIC)
    (tmp_path / "prompts.txt").write_text("text 1: \nhello\n")
    return {
        "evaluation.dataset": write_texts(tmp_path / "a.jsonl", 21),
        "evaluation.sets": f"b={write_texts(tmp_path / 'b.jsonl', 7)}",
        "evaluation.metrics": f"loss,perplexity,bits_per_byte,accuracy,{tmp_path}/agreement.py",
        "evaluation.interval": 1,
        "evaluation.batch_size": 3,
        "evaluation.max_context": 256,
        "evaluation.carry_state": True,
        "evaluation.prompts": tmp_path / "prompts.txt",
        "evaluation.sample_tokens": 8,
    }


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_a_run_with_evaluation_ends_with_the_bits_of_one_without(
    train_here: TrainHere,
    flags: Flags,
    evaluation: dict[str, Any],
    tmp_path: Path,
    compiled: bool,
):
    """With dropout, which draws random numbers in each step of training."""
    model = tmp_path / "gpt2.json"
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "vocab_size": 258}
    model.write_text(json.dumps({"model_type": "gpt2", "resid_pdrop": 0.3, **sizes}))
    changes = {"training.steps": 4, "model.config": model, "training.compile": compiled}
    for name, more in (("without", {}), ("with", evaluation)):
        folder = {"job.dump_folder": tmp_path / name}
        train_here(flags(**{**SHORT_RUN, **changes, **more, **folder}))
    assert len(evaluations_of_sets(tmp_path / "with")) == 8
    assert not read_evaluations(tmp_path / "without")
    assert read_losses(tmp_path / "with") == read_losses(tmp_path / "without")
    assert model_digests(tmp_path / "with/hf") == model_digests(tmp_path / "without/hf")


def evaluations_of_sets(run: Path) -> list[Evaluation]:
    return [each for each in read_evaluations(run) if each.name != EXPORTED_MODEL]


def figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        **evaluation.metrics,
        **{name: list(values) for name, values in evaluation.by_position.items()},
        "targets": evaluation.details["targets"],
    }


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_ranks_with_unequal_rows_find_what_one_process_finds(
    train_here: TrainHere, flags: Flags, evaluation: dict[str, Any], tmp_path: Path, engine: str
):
    options = {**SHORT_RUN, **evaluation, "evaluation.sample_temperature": 0}
    alone = {"job.dump_folder": tmp_path / "alone", "evaluation.batch_size": 2}
    train_here(flags(**{**options, **alone}))
    together = {"job.dump_folder": tmp_path / engine, "training.batch_size": 2}
    launch(flags(**{**options, **together}), config=engine, processes=2)
    expected, found = (evaluations_of_sets(tmp_path / name) for name in ("alone", engine))
    assert [(e.step, e.name) for e in found] == [(e.step, e.name) for e in expected]
    assert {e.name for e in found} == {"validation", "b"}
    for one, other in zip(expected, found, strict=True):
        assert list(one.samples) == list(other.samples)
        assert [sample["prompt"] for sample in one.samples] == (
            ["text 1: ", "hello"] if one.name == "validation" else []
        )
        assert one.metrics["agreement"] == one.metrics["accuracy"]
        for name, value in figures(one).items():
            assert figures(other)[name] == pytest.approx(value, rel=1e-4, nan_ok=True), name
    record, main = read_records(tmp_path / engine)[-1], found[-2]
    for name, value in main.metrics.items():
        assert record[f"eval/{name}"] == value
    assert record["eval/b/loss"] == found[-1].metrics["loss"]
