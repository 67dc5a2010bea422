"""What a run reads of DeepSpeed's engine; engines of its own are in `checkpoint/test_zero`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from flame_accel.parallel import is_deepspeed, read_deepspeed_update_result
from flame_accel.parallel.deepspeed import (
    describe_zero_stage_and_offload,
    iterate_model_parameters_under_zero,
)


def test_only_deepspeed_is_deepspeed():
    for distributed_type in DistributedType:
        accelerator: Any = SimpleNamespace(distributed_type=distributed_type)
        assert is_deepspeed(accelerator) == (distributed_type == DistributedType.DEEPSPEED)


@pytest.mark.parametrize("norm", [3.0, torch.tensor(3.0, dtype=torch.float64)])
@pytest.mark.parametrize("overflow", [True, False])
def test_the_step_inside_backward_tells_its_norm_and_whether_it_was_skipped(norm, overflow):
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    engine: Any = SimpleNamespace(
        get_global_grad_norm=lambda: norm, optimizer=SimpleNamespace(overflow=overflow)
    )
    result = read_deepspeed_update_result(accelerator, engine)
    assert (result.grad_norm.item(), result.skipped.item()) == (3.0, float(overflow))
    assert result.grad_norm.dtype is torch.float32


@pytest.mark.parametrize("groups", ["fp16_groups", "bit16_groups"])
def test_parameters_are_found_under_every_stage(groups):
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    zero = SimpleNamespace(**{groups: [parameters[:1], parameters[1:]]})
    optimizer: Any = SimpleNamespace(optimizer=zero)
    assert list(iterate_model_parameters_under_zero(optimizer)) == parameters


def test_stage_and_offloading_are_described():
    zero: dict[str, Any] = {"stage": 2}
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    assert describe_zero_stage_and_offload(accelerator) == "ZeRO-2"
    zero |= {"stage": 3, "offload_optimizer": {}, "offload_param": {}}
    assert (
        describe_zero_stage_and_offload(accelerator)
        == "ZeRO-3 with optimizer and weights in CPU memory"
    )
