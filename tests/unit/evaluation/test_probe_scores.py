"""What a validation says of a task: 1 for a model that knows the rule, 0 for answers half right."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data.from_options import build_evaluation_batches, open_data
from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.evaluation.validate import RowSums, evaluate_rows
from tests.helpers.probe_solvers import ID_TASKS, SolvedTask

DOCUMENTS = 20


class Solver(torch.nn.Module):
    """Predicts what the rule says of every position; of the last answers of a run perhaps not."""

    def __init__(self, task: SolvedTask, *, wrong_at: int | None = None) -> None:
        super().__init__()
        self.task = task
        self.wrong_at = wrong_at

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, 300)
        for row, tokens in enumerate(input_ids.tolist()):
            for at in range(1, len(tokens)):
                try:
                    answer = self.task.solve(tokens, at)
                # no question is asked here
                except (ValueError, IndexError):
                    continue
                if at != self.wrong_at:
                    logits[row, at - 1, answer] = 50.0
        return SimpleNamespace(logits=logits)


def rows_of(task: SolvedTask, model: Solver, *, rank: int = 0, world_size: int = 1) -> RowSums:
    # rows of the training that are too short for a document do not matter
    training = TrainingConfig(dataset="synthetic:parity:length=8", seq_len=16, varlen=True)
    evaluation = EvaluationConfig(sets=(f"probe={task.name}:documents={DOCUMENTS}",))
    data = open_data(training, evaluation, load_tokenizer("byte", False))
    batches = build_evaluation_batches(
        training, evaluation, data, rank=rank, world_size=world_size
    )["probe"]
    return evaluate_rows(Accelerator(cpu=True), model, batches, position_step=64).rows


@pytest.mark.parametrize("task", ID_TASKS, ids=lambda task: task.name)
def test_a_model_that_knows_the_rule_is_always_right(task: SolvedTask) -> None:
    sums = [rows_of(task, Solver(task), rank=rank, world_size=2) for rank in range(2)]
    totals = [sum(map(sum, column)) for column in zip(*sums, strict=True)]
    nats, correct, targets, answers, correct_answers = totals
    assert correct == targets == DOCUMENTS * task.answers
    assert nats / targets < 1e-9
    # the tokens to copy are one answer, those of mqar one each
    assert answers == DOCUMENTS * (1 if "copying" in task.name else task.answers)
    assert correct_answers == answers


def test_an_answer_with_a_wrong_token_is_wrong() -> None:
    task = ID_TASKS[-1]
    rows = rows_of(task, Solver(task, wrong_at=30 + 1 + 2))
    assert sum(rows.correct) == DOCUMENTS * (task.answers - 1)
    assert sum(rows.correct_answers) == 0
    assert sum(rows.answers) == DOCUMENTS


def test_a_model_that_knows_nothing_is_right_as_often_as_chance() -> None:
    task = ID_TASKS[3]
    rows = rows_of(task, Solver(task._replace(solve=lambda tokens, at: 0)))
    assert 0.1 < sum(rows.correct) / sum(rows.targets) < 0.9
