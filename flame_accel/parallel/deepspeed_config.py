"""DeepSpeed's configuration, from the options and the launcher, with nothing left to be guessed.

ZeRO keeps fp32 weights here, under bf16 within torch's autocast. Its own bf16 mode would round
every weight, also the few that fla computes with in fp32; so a run gets the numbers of one device.
What a run asks of DeepSpeed while it trains is in `deepspeed`.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DeepSpeedPlugin, is_deepspeed_available

from flame_accel.config import TrainingConfig, UsageError
from flame_accel.cpu_cores import count_cores_in_affinity_mask
from flame_accel.json_text import parse_json_text

LAUNCH_FLAG = "ACCELERATE_USE_DEEPSPEED"
YAML = "deepspeed_config of the accelerate configuration"
OFFLOAD_STAGES = {"offload_optimizer": (1, 2, 3), "offload_param": (3,)}
"""What can be kept in CPU memory -> the ZeRO stages that can do it."""
BUCKET_ELEMENTS = 50_000_000
"""Gradient elements that are reduced at a time, 200 MB in fp32; DeepSpeed's default is ten times as
much."""


def build_deepspeed_plugin(
    training: TrainingConfig, *, bf16: bool, on_cpu: bool
) -> DeepSpeedPlugin:
    """Accelerate's plugin for DeepSpeed, from the options and what the launcher passed on.

    Imports deepspeed; nothing may have done so before, since it looks for its device only once.

    Args:
        training: Sizes of a step, clipping, offloading.
        bf16: Whether to compute under bf16 autocast.
        on_cpu: Whether the ranks are CPU processes over gloo.

    Raises:
        UserError: DeepSpeed is not installed, does not support what is asked for, or options and
            launcher contradict each other.
    """
    if not is_deepspeed_available():
        raise UsageError(
            "the accelerate configuration asks for DeepSpeed, which is not installed",
            where=f"{LAUNCH_FLAG}={os.environ.get(LAUNCH_FLAG)}",
            remedy="pip install deepspeed --no-build-isolation",
        )
    config = build_deepspeed_config(training, bf16=bf16, pin_memory=not on_cpu)
    _import_deepspeed_quietly(on_cpu)
    if "offload_optimizer" in config["zero_optimization"] and not on_cpu:
        _set_torch_threads_to_share_of_cores()
    # accelerate takes a complete configuration only from a file, and refuses one next to this
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    return DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)


def unset_transformers_deepspeed_config() -> None:
    """Keeps transformers from building sharded models; call it once the Accelerator is built.

    DeepSpeed shards the full model that `models` has built. The export is loaded again by a single
    process, which could not wait for others.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def build_deepspeed_config(
    training: TrainingConfig, *, bf16: bool, pin_memory: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration, with every value written out that it or accelerate would guess.

    Args:
        training: Sizes of a step, clipping, offloading.
        bf16: Whether to compute under bf16 autocast.
        pin_memory: Whether to lock the pages of what is offloaded.

    Raises:
        UserError: See `build_deepspeed_plugin`.
    """
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    launched = (
        _read_launcher_environ_or_raise_on_zero3_init()
        if file == "none"
        else _read_and_check_json_config(Path(file))
    )
    zero = dict(launched["zero_optimization"])
    _check_zero_settings_supported(zero, training)
    decided = _required_settings_by_key(training, bf16)
    for key, setting in decided.items():
        _check_launched_value_agrees(key, launched.get(key), setting.value, option=setting.option)
    zero.setdefault("reduce_bucket_size", BUCKET_ELEMENTS)
    for name, stages in OFFLOAD_STAGES.items():
        asked = training.enable_cpu_offload and zero["stage"] in stages
        offload = {"pin_memory": pin_memory, **(zero.pop(name, None) or {})}
        if asked or offload.get("device", "none") != "none":
            zero[name] = {**offload, "device": "cpu"}
    values = {key: setting.value for key, setting in decided.items()}
    return {**launched, **values, "zero_optimization": zero}


class _Setting(NamedTuple):
    """A value of DeepSpeed's configuration that the launcher cannot choose."""

    value: Any
    option: str | None = None
    """What it follows from, in the words of messages; None where it is needed in any case."""


def _required_settings_by_key(training: TrainingConfig, bf16: bool) -> dict[str, _Setting]:
    """The keys of DeepSpeed's configuration that the launcher cannot choose."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch, accumulation = training.batch_size, training.gradient_accumulation_steps
    return {
        "train_micro_batch_size_per_gpu": _Setting(micro_batch, "training.batch_size"),
        "gradient_accumulation_steps": _Setting(
            accumulation, "training.gradient_accumulation_steps"
        ),
        "train_batch_size": _Setting(
            micro_batch * accumulation * world_size,
            "training.batch_size x gradient_accumulation_steps x processes",
        ),
        # accelerate would clip to 1.0
        "gradient_clipping": _Setting(training.max_norm, "training.max_norm"),
        "bf16": _Setting({"enabled": False}),
        "fp16": _Setting({"enabled": False}),
        "torch_autocast": _Setting(
            # modules named here would gather weights and sum gradients in bf16
            {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
            "mixed precision",
        ),
        "communication_data_type": _Setting("fp32"),
        "data_types": _Setting({"grad_accum_dtype": "fp32"}),
        "zero_allow_untested_optimizer": _Setting(True),
        # the run's own optimizer stays, whose state a checkpoint holds
        "zero_force_ds_cpu_optimizer": _Setting(False),
    }


def _read_launcher_environ_or_raise_on_zero3_init() -> dict[str, Any]:
    """The YAML's keys under `deepspeed_config`, which the launcher passes as variables."""
    zero: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    for name in OFFLOAD_STAGES:
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_{name.upper()}_DEVICE", "none")
        if device != "none":
            zero[name] = {"device": device}
    launched: dict[str, Any] = {"zero_optimization": zero}
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        value = os.environ.get(f"ACCELERATE_{key.upper()}", "auto")
        if value not in ("auto", "none"):
            launched[key] = float(value)
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false") == "true":
        raise UsageError(
            "zero3_init_flag: true would shard the weights before they have their initial values",
            where=YAML,
            remedy="set zero3_init_flag: false there; DeepSpeed shards the model that is built",
        )
    return launched


def _read_and_check_json_config(path: Path) -> dict[str, Any]:
    """The user's own JSON configuration of DeepSpeed; `auto` leaves a value to us."""
    try:
        launched = parse_json_text(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"DeepSpeed's configuration cannot be read: {error}",
            where=f"deepspeed_config_file: {path}",
            remedy="name a JSON file, or remove the key and use zero_stage",
        ) from error
    for key in ("optimizer", "scheduler"):
        if key in launched:
            raise UsageError(
                f"the {key} is chosen by the options of section optimizer",
                where=f"{key} in {path}",
                remedy="remove it there",
            )
    if not isinstance(launched.get("zero_optimization"), dict):
        raise UsageError(
            "the ZeRO stage is missing",
            where=str(path),
            remedy='add "zero_optimization": {"stage": 2}',
        )
    return launched


def _check_zero_settings_supported(
    zero_settings: Mapping[str, Any], training: TrainingConfig
) -> None:
    """Checks that ZeRO does what the options and the launcher's settings ask for.

    Args:
        zero_settings: The launcher's `zero_optimization`.
        training: The options.
    """
    stage = zero_settings.get("stage", 0)
    if stage not in (1, 2, 3):
        raise UsageError(
            f"ZeRO stage {stage} is not supported; stage 0, which shards nothing, would apply "
            "gradients that are not finite",
            where=f"zero_stage: {stage} in {YAML}",
            remedy="use stage 1, 2 or 3, or accelerate_configs/ddp.yaml",
        )
    if not training.skip_nan_inf:
        raise UsageError(
            "DeepSpeed skips every update whose gradients are not finite, which contradicts "
            "training.skip_nan_inf = false",
            where="training.skip_nan_inf",
            remedy="leave it true, or use accelerate_configs/fsdp2.yaml",
        )
    if training.compile and stage == 3:
        raise UsageError(
            "compiled code does not see that ZeRO-3 has to gather a weight that one module of a "
            "block takes from another, as fla's do",
            where=f"training.compile, and zero_stage: 3 in {YAML}",
            remedy="use zero_stage: 2 or fsdp2.yaml, or remove training.compile",
        )
    for name, stages in OFFLOAD_STAGES.items():
        device = (zero_settings.get(name) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise UsageError(
                f"{name} to {device} is not supported",
                where=f"{name}_device: {device} in {YAML}",
                remedy="use cpu or none",
            )
        if device != "none" and stage not in stages:
            raise UsageError(
                f"ZeRO-{stage} keeps all weights on every device and cannot offload them",
                where=f"{name}_device: {device} in {YAML}",
                remedy="set it to none, or zero_stage: 3",
            )


def _check_launched_value_agrees(
    key: str, launched: Any, required: Any, *, option: str | None
) -> None:
    """Checks that a value of the launcher, where it gives one, is the one that is needed."""
    if launched is None or launched == "auto" or launched == required:
        return
    if isinstance(required, Mapping) and isinstance(launched, Mapping):
        for name, value in required.items():
            _check_launched_value_agrees(f"{key}.{name}", launched.get(name), value, option=option)
        return
    needed = f"{required}, which is needed here" if option is None else f"{option} = {required}"
    raise UsageError(
        f"DeepSpeed's {key} = {launched} contradicts {needed}",
        where=YAML,
        remedy=f"set {key} to auto there, or remove it",
    )


def _import_deepspeed_quietly(on_cpu: bool) -> None:
    """Imports deepspeed for the device of the run, and silences its messages below warnings."""
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # of DeepSpeed's own calls, once in every process
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    # would be compiled when the process group starts; gloo does the same without a compiler
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _set_torch_threads_to_share_of_cores() -> None:
    """Divides the cores of this machine among its ranks, for updates in CPU memory.

    torchrun leaves every rank one thread, which is enough for everything else.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, count_cores_in_affinity_mask() // ranks))
