"""Checks of what a launch gave, on Accelerators that are not what was asked for.

Several ranks that hold different weights are launched in `laws/test_accelerate_traps`.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from flame_accel.config import TrainingConfig, UserError
from flame_accel.parallel import checks
from flame_accel.parallel.checks import (
    check_accelerator_matches_topology,
    check_initial_weights_equal,
    check_prepared_parameters,
)
from flame_accel.parallel.topology import resolve_engine_mesh_and_precision
from tests.helpers.launches import FSDP2, launch_variables


def accelerator(distributed_type: DistributedType, num_processes: int, **changes: Any) -> Any:
    known = {"is_fsdp2": False, "state": SimpleNamespace(device_mesh=None)}
    return SimpleNamespace(
        distributed_type=distributed_type, num_processes=num_processes, **known | changes
    )


DDP = resolve_engine_mesh_and_precision(TrainingConfig(), launch_variables(4), num_devices=None)
SHARDED = resolve_engine_mesh_and_precision(
    TrainingConfig(), launch_variables(4, FSDP2), num_devices=None
)


def test_a_launch_that_gave_what_was_asked_for_passes():
    check_accelerator_matches_topology(accelerator(DistributedType.MULTI_CPU, 4), DDP)
    check_accelerator_matches_topology(accelerator(DistributedType.FSDP, 4, is_fsdp2=True), SHARDED)


@pytest.mark.parametrize(
    ("found", "topology", "message"),
    [
        (accelerator(DistributedType.NO, 1), DDP, "4 processes were launched but this one sees 1"),
        (accelerator(DistributedType.FSDP, 4), DDP, "engine"),
        (accelerator(DistributedType.MULTI_CPU, 4), SHARDED, "engine, FSDP version 2, mesh"),
        (accelerator(DistributedType.FSDP, 4), SHARDED, "FSDP version 2, mesh"),
    ],
)
def test_a_launch_that_gave_something_else_is_refused(found, topology, message):
    with pytest.raises(UserError, match=message) as raised:
        check_accelerator_matches_topology(found, topology)
    assert "accelerate_configs/" in str(raised.value)


def test_weights_on_the_meta_device_are_refused():
    with pytest.raises(RuntimeError, match="the model has no weights yet"):
        check_initial_weights_equal(
            accelerator(DistributedType.NO, 1), nn.Linear(2, 2, device="meta")
        )


def test_an_optimizer_that_lacks_a_parameter_is_noticed():
    model = nn.Linear(2, 2)
    run = accelerator(DistributedType.NO, 1)
    check_prepared_parameters(run, model, optimizer_over(*model.parameters()))
    with pytest.raises(RuntimeError, match="the optimizer holds 1 parameters, the model 2, 1 of"):
        check_prepared_parameters(run, model, optimizer_over(model.weight))


def test_frozen_parameters_need_no_optimizer():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    check_prepared_parameters(
        accelerator(DistributedType.NO, 1), model, optimizer_over(model.weight)
    )


def test_fsdp2_that_has_sharded_nothing_is_noticed():
    model = nn.Linear(2, 2)
    plugin = SimpleNamespace(ignored_modules=None, cpu_offload=None)
    state = SimpleNamespace(device_mesh=None, fsdp_plugin=plugin)
    run = accelerator(DistributedType.FSDP, 1, is_fsdp2=True, state=state)
    with pytest.raises(RuntimeError, match="no parameter is sharded"):
        check_prepared_parameters(run, model, optimizer_over(*model.parameters()))


@pytest.mark.parametrize("differs", [False, True])
def test_copies_of_a_weight_that_hold_different_bits_are_noticed(monkeypatch, differs):
    def gather(checksums: Tensor, group: object) -> Tensor:
        return torch.stack([checksums, checksums + torch.tensor([0, int(differs)])])

    monkeypatch.setattr(checks, "all_gather_stacked", gather)
    monkeypatch.setattr(checks, "get_world_size", lambda group: 2)
    model, run = nn.Linear(2, 2), accelerator(DistributedType.MULTI_CPU, 2)
    after_prepare: Any = pytest.raises(RuntimeError, match=r"the 2 copies of 1 .* as bias")
    at_start: Any = pytest.raises(RuntimeError, match=r"different initial weights of 1 .* as bias")
    run.device = torch.device("cpu")
    run.parallelism_config = None
    with after_prepare if differs else nullcontext():
        check_prepared_parameters(run, model, optimizer_over(*model.parameters()))
    with at_start if differs else nullcontext():
        check_initial_weights_equal(run, model)


def optimizer_over(*parameters: nn.Parameter) -> Any:
    return torch.optim.SGD(parameters, lr=0.1)
