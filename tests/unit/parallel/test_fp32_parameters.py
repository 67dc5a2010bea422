"""Parameters that FSDP2 ignores: they stay in fp32, and train as on one process."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flame_accel.models.catalogue import fla_config_classes, tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.parameter_groups import fp32_parameter_names
from flame_accel.parallel.fp32_parameters import (
    average_fsdp2_ignored_gradients,
    ignored_fp32_parameters,
    move_fp32_parameters_and_ignore_if_fsdp2,
)
from tests.helpers.runs import ROOT, launch

PROGRAMS = ROOT / "tests/helpers/fsdp2_programs.py"


def run_program(*arguments: str, config: str = "fsdp2", processes: int = 2) -> None:
    launch([*arguments], config=config, processes=processes, script=PROGRAMS)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("config", "processes", "model_types"),
    [("fsdp2", 2, ("kda", "gated_deltanet", "mamba2")), ("fsdp2_offload", 2, ("kda",))],
)
def test_models_with_ignored_parameters_train_as_on_one_process(config, processes, model_types):
    run_program("equals_one_process", *model_types, config=config, processes=processes)


@pytest.mark.distributed
def test_decays_stay_exact_next_to_bf16_weights():
    run_program("stays_exact_in_bf16")


def fake_accelerator(*, is_fsdp2: bool) -> Any:
    """What is read of an Accelerator of one process."""
    return SimpleNamespace(
        is_fsdp2=is_fsdp2,
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(ignored_modules=None)),
        device=torch.device("cpu"),
        num_processes=1,
    )


def test_fsdp2_ignores_the_parameters_of_decays():
    accelerator, model = (
        fake_accelerator(is_fsdp2=True),
        instantiate_on_default_device(tiny_config("kda")),
    )
    move_fp32_parameters_and_ignore_if_fsdp2(accelerator, model)
    expected = [model.get_parameter(name) for name in fp32_parameter_names(model)]
    ignored = ignored_fp32_parameters(accelerator)
    assert expected and set(ignored) == set(expected)


def test_other_engines_ignore_nothing():
    accelerator = fake_accelerator(is_fsdp2=False)
    move_fp32_parameters_and_ignore_if_fsdp2(
        accelerator, instantiate_on_default_device(tiny_config("kda"))
    )
    average_fsdp2_ignored_gradients(accelerator)
    assert accelerator.state.fsdp_plugin.ignored_modules is None
    assert ignored_fp32_parameters(accelerator) == []


def test_a_missing_gradient_counts_as_zeros():
    accelerator, model = (
        fake_accelerator(is_fsdp2=True),
        instantiate_on_default_device(tiny_config("kda")),
    )
    move_fp32_parameters_and_ignore_if_fsdp2(accelerator, model)
    average_fsdp2_ignored_gradients(accelerator)
    for parameter in ignored_fp32_parameters(accelerator):
        assert parameter.grad is not None and not parameter.grad.any()


def with_bf16_weights(model_type: str) -> nn.Module:
    """A model as FSDP2 with bf16 runs it: ignored parameters in fp32, the others in bf16."""
    model = instantiate_on_default_device(tiny_config(model_type))
    names = set(fp32_parameter_names(model))
    for name, parameter in model.named_parameters():
        if name not in names:
            parameter.data = parameter.data.bfloat16()
    return model


@pytest.mark.parametrize(
    "model_type",
    ["comba", "gated_deltanet", "kda", "log_linear_mamba2", "mamba", "mamba2", "mamba3"],
)
def test_models_run_with_fp32_decays_and_bf16_weights(model_type):
    model = with_bf16_weights(model_type)
    tokens = torch.randint(3, 256, (1, 64), generator=torch.Generator().manual_seed(0))
    model(input_ids=tokens, labels=tokens).loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype is parameter.dtype
        assert parameter.grad.isfinite().all()


def test_ignored_parameters_are_few():
    for model_type in fla_config_classes():
        with torch.device("meta"):
            model = instantiate_on_default_device(tiny_config(model_type))
        whole = set(fp32_parameter_names(model))
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        assert sum(sizes[name] for name in whole) <= 0.05 * sum(sizes.values()), model_type
