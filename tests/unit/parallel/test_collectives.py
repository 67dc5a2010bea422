"""Collectives over the ranks of a run: what one rank gets, and how TP ranks count."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel.config import UserError
from flame_accel.parallel import (
    all_gather_concatenated,
    all_reduce_sum_over_dp,
    collectives,
    run_on_main_and_broadcast,
    widest_float_dtype,
)
from flame_accel.parallel.collectives import all_gather_stacked
from tests.helpers.process_groups import fake_process_group


def accelerator(num_processes: int, tp: int = 1) -> Any:
    """One whose ranks all hold the same tensor."""
    return SimpleNamespace(
        num_processes=num_processes,
        parallelism_config=SimpleNamespace(tp_size=tp),
        reduce=lambda tensor, operation: tensor * num_processes,
        gather=lambda tensor: tensor.repeat(num_processes),
    )


def test_one_rank_exchanges_nothing():
    tensor = torch.ones(3)
    assert all_reduce_sum_over_dp(accelerator(1), tensor) is tensor
    assert all_gather_concatenated(accelerator(1), tensor) is tensor


def test_a_sum_counts_the_tensor_of_a_tp_group_once():
    for tensor in (torch.tensor([1.5, 2.0]), torch.tensor([3, 4])):
        total = all_reduce_sum_over_dp(accelerator(6, tp=2), tensor)
        assert torch.equal(total, 3 * tensor)
        assert total.dtype is tensor.dtype


def test_gathering_concatenates_in_rank_order():
    assert all_gather_concatenated(accelerator(3), torch.tensor([1, 2])).tolist() == [
        1,
        2,
        1,
        2,
        1,
        2,
    ]


def test_stacked_gathering_has_one_row_per_rank_of_the_group():
    with fake_process_group(rank=0, world_size=4):
        assert all_gather_stacked(torch.ones(2, 3)).shape == (4, 2, 3)


def test_sums_use_the_widest_type_of_a_device():
    assert widest_float_dtype(torch.device("cpu")) is torch.float64
    assert widest_float_dtype(torch.device("mps")) is torch.float32


@pytest.mark.parametrize("raised", [UserError("no such name"), OSError("disk is full")])
def test_what_the_main_process_raises_ends_every_rank(
    raised: Exception, monkeypatch: pytest.MonkeyPatch
):
    sent: list[Any] = []

    def fail() -> None:
        raise raised

    def on_main(is_main: bool) -> Any:
        return SimpleNamespace(is_main_process=is_main)

    monkeypatch.setattr(collectives, "broadcast_object_list", lambda o: sent.append(o) or o)
    with pytest.raises(type(raised)) as on_the_main:
        run_on_main_and_broadcast(on_main(True), fail)
    assert on_the_main.value is raised
    monkeypatch.setattr(collectives, "broadcast_object_list", lambda _: sent[0])
    with pytest.raises(UserError, match=str(raised)):
        run_on_main_and_broadcast(on_main(False), fail)
