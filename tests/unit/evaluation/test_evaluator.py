"""The evaluation of a model at a step: its sets, and long contexts in one piece and in several."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fla.models import GLAConfig
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from flame_accel.config import Config
from flame_accel.data import load_tokenizer, open_data
from flame_accel.evaluation import Evaluator
from flame_accel.evaluation.evaluator import EvaluationResult
from tests.helpers.runs import TINY_GLA

Configured = Callable[..., Config]
GLA = GLAConfig(**{name: value for name, value in TINY_GLA.items() if name != "model_type"})
LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=258,
)


def build_model(config: PreTrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # untrained weights would give every position the same loss
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def evaluate(
    config: Config, model: nn.Module | None = None, *, may_carry_state: bool = True
) -> EvaluationResult:
    data = open_data(config.training, config.evaluation, load_tokenizer("byte", False))
    evaluator = Evaluator(
        Accelerator(cpu=True),
        config.evaluation,
        config.training,
        data,
        may_carry_state=may_carry_state,
    )
    return evaluator.evaluate(model or build_model(GLA), step=3, tokens=99)


@pytest.mark.covers_option("evaluation.max_context", "evaluation.carry_state")
@pytest.mark.parametrize("model_config", [GLA, LLAMA], ids=["state", "keys and values"])
@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_contexts_of_8_times_the_trained_length_give_the_same_in_one_piece_and_in_several(
    configured: Configured, corpus: Path, model_config: PreTrainedConfig
):
    options = {"evaluation.dataset": corpus, "evaluation.held_out_share": 0.7}
    found = {}
    for carried in (False, True):
        config = configured(
            **{"evaluation.max_context": 512, "evaluation.carry_state": carried}, **options
        )
        [found[carried]] = evaluate(config, build_model(model_config)).evaluations
        assert found[carried].details["carried_state"] == carried
    whole, pieces = found[False].by_position, found[True].by_position
    assert whole["edges"] == pieces["edges"] == [*range(0, 513, 8)]
    assert len({round(loss, 3) for loss in whole["loss"]}) > 32
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=2e-5)
    assert pieces["accuracy"] == pytest.approx(whole["accuracy"], abs=0.05)
    # what the set's own rows give does not depend on it
    assert found[False].metrics == found[True].metrics
    [short] = evaluate(configured(**options), build_model(model_config)).evaluations
    assert short.by_position["edges"] == [*range(0, 65, 8)]
    assert short.metrics == found[False].metrics


@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_with_varlen_documents_longer_than_those_of_training_are_read_whole(
    configured: Configured, tmp_path: Path
):
    """Those that fit give the same as segments of a row, and in rows of their own, in pieces."""
    file = tmp_path / "a.jsonl"
    texts = ["abc " * (i % 32) + str(i) for i in range(1, 60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {
        "training.varlen": True,
        "training.context_len": 32,
        "evaluation.dataset": file,
        "evaluation.max_context": 128,
    }
    [whole], [pieces] = (
        evaluate(configured(**options, **{"evaluation.carry_state": carried})).evaluations
        for carried in (False, True)
    )
    assert pieces.details["carried_state"] and not whole.details["carried_state"]
    longest = max(map(len, texts))
    assert pieces.by_position["edges"] == whole.by_position["edges"]
    assert whole.by_position["edges"] == [*range(0, longest + 1, 4), longest + 1]
    assert pieces.by_position["loss"] == pytest.approx(whole.by_position["loss"], rel=2e-5)


@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_a_model_that_cannot_carry_its_state_reads_rows_whole_and_that_is_said(
    configured: Configured, corpus: Path, log: pytest.LogCaptureFixture
):
    options = {"evaluation.dataset": corpus, "evaluation.held_out_share": 0.7}
    config = configured(
        **options, **{"evaluation.max_context": 128, "evaluation.carry_state": True}
    )
    [found] = evaluate(config, may_carry_state=False).evaluations
    assert not found.details["carried_state"] and found.by_position["edges"][-1] == 128
    assert log.text.count("cannot read rows in pieces") == 1


@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_the_mode_of_every_module_and_the_random_states_are_as_before(
    configured: Configured, corpus: Path
):
    model = build_model(GLA)
    first, *others = model.modules()
    for number, module in enumerate([first, *others]):
        module.training = number % 3 == 0
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    evaluate(configured(**{"evaluation.dataset": corpus}), model)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.covers_option("evaluation.metrics")
@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_sets_have_keys_and_lines_of_their_own(
    configured: Configured, corpus: Path, log: pytest.LogCaptureFixture
):
    options: dict[str, Any] = {"evaluation.metrics": "loss,accuracy"}
    found = evaluate(configured(**options, **{"evaluation.sets": f"a={corpus},b={corpus}"}))
    assert set(found.record) == {"eval/a/loss", "eval/a/accuracy", "eval/b/loss", "eval/b/accuracy"}
    assert found.record["eval/a/loss"] == found.record["eval/b/loss"]
    assert [(e.step, e.tokens, e.kind, e.name) for e in found.evaluations] == [
        (3, 99, "set", "a"),
        (3, 99, "set", "b"),
    ]
    assert "evaluation set a: loss" in log.text and "evaluation set b: loss" in log.text


@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_questions_made_on_the_fly_are_whole_in_rows_of_any_length(configured: Configured):
    """Longer than those of training, beside which they are evaluated; nothing else is a target."""
    options = {"evaluation.max_context": 128, "training.seq_len": 32}
    sets = "mqar=synthetic:mqar:pairs=4:length=64:vocab=200:documents=21"
    found = evaluate(configured(**options, **{"evaluation.sets": sets}))
    assert set(found.record) == {
        f"eval/mqar/{name}" for name in ("loss", "perplexity", "accuracy", "answer_accuracy")
    }
    [mqar] = found.evaluations
    assert (mqar.kind, mqar.name) == ("probe", "mqar")
    # each of 4 keys is asked for once in each document; an answer is one token
    assert mqar.details["targets"] == 21 * 4
    assert mqar.metrics["answer_accuracy"] == mqar.metrics["accuracy"]
    assert mqar.by_position["edges"][-1] <= 64


OWN_LOSS = """
import datasets
import evaluate


class Own(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"targets": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, targets):
        return {"loss": -1.0, "own": 1.0}
"""


@pytest.mark.usefixtures("torch_kernels", "one_thread")
def test_of_two_metrics_with_one_name_the_first_is_kept_and_that_is_said(
    configured: Configured, corpus: Path, tmp_path: Path, log: pytest.LogCaptureFixture
):
    own = tmp_path / "own.py"
    own.write_text(OWN_LOSS)
    options: dict[str, Any] = {"evaluation.sets": f"a={corpus},b={corpus}"}
    found = evaluate(configured(**options, **{"evaluation.metrics": f"loss,loss,{own}"}))
    assert found.record["eval/a/loss"] > 0 and found.record["eval/a/own"] == 1
    assert log.text.count("whose figures are kept: loss") == 1
