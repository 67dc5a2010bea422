"""Building an optimizer: its groups and fused updates, its guard, and engines that lack it."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from flame_accel.config import OptimizerConfig, UserError
from flame_accel.training import build_optimizer, check_optimizer_support
from flame_accel.training.optimizer import find_hidden_matrices
from tests.helpers.optimizers import (
    HYPERPARAMETERS,
    OPTIMIZER_NAMES,
    SINGLE_PROCESS,
    build_gla,
    copy_weights_and_state,
    fake_accelerator,
    step_with_random_gradients,
)


def test_a_device_without_a_fused_kernel_gets_torchs_default():
    accelerator = fake_accelerator(DistributedType.NO, device=torch.device("hpu"))
    optimizer = build_optimizer(accelerator, build_gla(), OptimizerConfig())
    assert optimizer.defaults["fused"] is False


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_matrices_are_the_weights_of_linear_layers_inside_of_blocks(tied):
    model = build_gla(tie_word_embeddings=tied)
    chosen = find_hidden_matrices(model)
    names = {name for name, parameter in model.named_parameters() if parameter in chosen}
    inside = {f"attn.{x}_proj.weight" for x in "qkvgo"} | {"attn.gk_proj.0.weight"}
    inside |= {f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")} | {"attn.gk_proj.1.weight"}
    assert names == {f"model.layers.{i}.{name}" for i in (0, 1) for name in inside}


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_found_inf_leaves_weights_and_state_bit_identical(name):
    model = build_gla()
    optimizer: Any = build_optimizer(
        SINGLE_PROCESS, model, OptimizerConfig(name=name, **HYPERPARAMETERS)
    )
    optimizer.found_inf = torch.zeros(())
    step_with_random_gradients(model, optimizer)
    before = copy_weights_and_state(model, optimizer)
    optimizer.found_inf = torch.ones(())
    step_with_random_gradients(model, optimizer, scale=float("nan"))
    assert all(map(torch.equal, copy_weights_and_state(model, optimizer), before))
    optimizer.found_inf = torch.zeros(())
    step_with_random_gradients(model, optimizer)
    assert not torch.equal(copy_weights_and_state(model, optimizer)[0], before[0])


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_state_dict_round_trip_continues_with_the_same_bits(name):
    config = OptimizerConfig(name=name, **HYPERPARAMETERS)
    model, second = build_gla(), build_gla()
    optimizer, other = (build_optimizer(SINGLE_PROCESS, m, config) for m in (model, second))
    step_with_random_gradients(model, optimizer)
    second.load_state_dict(model.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    step_with_random_gradients(model, optimizer)
    step_with_random_gradients(second, other)
    assert all(
        map(
            torch.equal,
            copy_weights_and_state(model, optimizer),
            copy_weights_and_state(second, other),
        )
    )


DDP = fake_accelerator(DistributedType.MULTI_GPU, num_processes=2)


DEEPSPEED = fake_accelerator(DistributedType.DEEPSPEED, num_processes=2)


TENSOR = fake_accelerator(
    DistributedType.FSDP, num_processes=4, is_fsdp2=True,
    parallelism_config=SimpleNamespace(tp_size=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("accelerator", "options", "named"),
    [
        (DEEPSPEED, {"name": "Muon"}, "Muon needs whole matrices"),
        (DEEPSPEED, {"early_step_in_backward": True}, "DeepSpeed takes the optimizer's step"),
        (DDP, {"early_step_in_backward": True}, "DDP averages the gradients only after"),
        (TENSOR, {"early_step_in_backward": True}, "tensor parallelism completes some"),
    ],
)
def test_engines_without_support_for_an_optimizer_are_refused(accelerator, options, named):
    with pytest.raises(UserError, match=named) as raised:
        check_optimizer_support(accelerator, OptimizerConfig(**options))
    assert "fsdp2.yaml" in str(raised.value)


@pytest.mark.covers_option(
    "optimizer.eps", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay"
)
def test_hyperparameters_are_those_of_the_options(configured):
    config = configured(
        **{
            "optimizer.lr": 0.5,
            "optimizer.eps": 0.25,
            "optimizer.beta1": 0.125,
            "optimizer.beta2": 0.75,
            "optimizer.weight_decay": 0.0625,
        }
    )
    optimizer = build_optimizer(SINGLE_PROCESS, build_gla(), config.optimizer)
    decays = set()
    for group in optimizer.param_groups:
        assert (group["lr"], group["eps"], tuple(group["betas"])) == (0.5, 0.25, (0.125, 0.75))
        decays.add(group["weight_decay"])
    assert decays == {0.0625, 0.0}
