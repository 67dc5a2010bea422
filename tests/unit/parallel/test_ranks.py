"""Which ranks read the same rows, and how many tokens a step has."""

from types import SimpleNamespace
from typing import Any

import pytest

from flame_accel.config import TrainingConfig
from flame_accel.parallel import dp_rank, dp_size, tokens_per_step, tp_size
from flame_accel.parallel.ranks import dp_group, tp_mesh
from tests.helpers.process_groups import fake_mesh


def accelerator(num_processes: int, tp: int | None, process_index: int = 0, **more: Any) -> Any:
    config = None if tp is None else SimpleNamespace(tp_size=tp)
    return SimpleNamespace(
        num_processes=num_processes, parallelism_config=config, process_index=process_index, **more
    )


@pytest.mark.parametrize(
    ("tp", "ranks"), [(None, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [0, 0, 1, 1])]
)
def test_neighboring_tp_ranks_read_the_same_rows(tp, ranks):
    assert [dp_rank(accelerator(4, tp, index)) for index in range(4)] == ranks
    assert dp_size(accelerator(4, tp)) == len(set(ranks))
    assert tp_size(accelerator(4, tp)) == (tp or 1)


def test_tp_ranks_add_no_tokens_to_a_step():
    training = TrainingConfig(batch_size=3, gradient_accumulation_steps=2, seq_len=10)
    assert tokens_per_step(training, accelerator(4, None)) == 3 * 2 * 10 * 4
    assert tokens_per_step(training, accelerator(4, 2)) == 3 * 2 * 10 * 2


def test_groups_are_those_of_the_mesh():
    with fake_mesh(2, 2, names=("dp", "tp")) as mesh:
        run = accelerator(4, 2, torch_device_mesh=mesh)
        assert tp_mesh(run).size() == 2
        assert dp_group(run) is mesh["dp"].get_group()
    assert dp_group(accelerator(4, None, torch_device_mesh=None)) is None
