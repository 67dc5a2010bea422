"""DeepSpeed's configuration: nothing is left to be guessed, and contradictions are refused."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from flame_accel.config import TrainingConfig, UserError
from flame_accel.parallel import deepspeed_config

STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"


FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


TRAINING = TrainingConfig(batch_size=3, gradient_accumulation_steps=2, max_norm=0.5)


def build_config(
    monkeypatch: pytest.MonkeyPatch,
    training: TrainingConfig = TRAINING,
    bf16: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The configuration under a launch of four processes."""
    for name, value in {"WORLD_SIZE": "4", **environment}.items():
        monkeypatch.setenv(name, value)
    return deepspeed_config.build_deepspeed_config(training, bf16=bf16, pin_memory=False)


def file_variables(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    """The variables of a launch with a JSON configuration of DeepSpeed."""
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(content))
    return {FILE: str(path)}


def test_no_value_is_left_to_be_guessed(monkeypatch):
    config = build_config(monkeypatch)
    assert config["gradient_clipping"] == 0.5
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["train_batch_size"] == 3 * 2 * 4
    assert config["communication_data_type"] == "fp32"
    assert config["zero_force_ds_cpu_optimizer"] is False
    # accelerate's own default
    assert config["zero_optimization"]["stage"] == 2
    assert '"auto"' not in json.dumps(config)


def test_bf16_is_autocast_over_fp32_weights(monkeypatch):
    config = build_config(monkeypatch, bf16=True)
    assert config["torch_autocast"]["enabled"]
    assert not config["bf16"]["enabled"]
    # no module's gradients are reduced in bf16
    assert config["torch_autocast"]["lower_precision_safe_modules"] == []


@pytest.mark.parametrize(("stage", "parts"), [("2", 1), ("3", 2)])
def test_the_option_offloads_what_a_stage_supports(monkeypatch, stage, parts):
    training = TrainingConfig(enable_cpu_offload=True)
    zero = build_config(monkeypatch, training, environment={STAGE: stage})["zero_optimization"]
    assert (
        sum(zero.get(name, {}).get("device") == "cpu" for name in deepspeed_config.OFFLOAD_STAGES)
        == parts
    )


def test_a_json_file_decides_what_no_option_decides(monkeypatch, tmp_path):
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "offload_param": None}
    content = {"zero_optimization": zero, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    config = build_config(monkeypatch, environment=file_variables(tmp_path, content))
    assert config["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    assert "offload_param" not in config["zero_optimization"]
    assert config["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ({STAGE: "0"}, {}, "stage 0 is not supported"),
        ({}, {"skip_nan_inf": False}, r"contradicts training\.skip_nan_inf = false"),
        (
            {"ACCELERATE_GRADIENT_CLIPPING": "1.0"},
            {"max_norm": 0.5},
            r"gradient_clipping = 1\.0 contradicts training\.max_norm = 0\.5",
        ),
        ({"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, {}, "zero3_init_flag"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, {}, "to nvme is not supported"),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu", STAGE: "2"},
            {},
            "cannot offload them",
        ),
        ({STAGE: "3"}, {"compile": True}, "compiled code does not see"),
        ({FILE: "/no/such.json"}, {}, "cannot be read"),
    ],
)
def test_a_launch_that_contradicts_is_refused(monkeypatch, environment, changes, message):
    with pytest.raises(UserError, match=message):
        build_config(monkeypatch, TrainingConfig(**changes), environment=environment)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "options of section optimizer"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled = True contradicts"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            r"train_micro_batch_size_per_gpu = 8 contradicts training\.batch_size = 3",
        ),
        ({"zero_optimization": {"stage": 0}}, "stage 0 is not supported"),
        ({"zero_optimization": None}, "stage is missing"),
    ],
)
def test_a_file_that_contradicts_is_refused(monkeypatch, tmp_path, content, message):
    file = {"zero_optimization": {"stage": 3}, **content}
    with pytest.raises(UserError, match=message):
        build_config(monkeypatch, environment=file_variables(tmp_path, file))


def test_missing_deepspeed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(deepspeed_config, "is_deepspeed_available", lambda: False)
    with pytest.raises(UserError, match="pip install deepspeed --no-build-isolation"):
        deepspeed_config.build_deepspeed_plugin(TRAINING, bf16=False, on_cpu=True)


def test_the_ranks_of_a_machine_divide_its_cores(monkeypatch):
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    try:
        deepspeed_config._set_torch_threads_to_share_of_cores()
        assert torch.get_num_threads() == cores
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(1)
        deepspeed_config._set_torch_threads_to_share_of_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
