"""DeepSpeed's ZeRO behind the same step: its configuration, and what its own step leaves behind.

ZeRO keeps fp32 weights here, under bf16 within torch's autocast. Its own bf16 mode would round
every weight, also the few that fla computes with in fp32; so a run gets the numbers of one device.
How the pieces of its state are put together again is in `checkpoint.zero`.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DeepSpeedPlugin, DistributedType, is_deepspeed_available
from torch import Tensor, nn

from flame_accel.config import TrainingConfig, UserError

LAUNCH_FLAG = "ACCELERATE_USE_DEEPSPEED"
OURS = "flame_accel"
YAML = "deepspeed_config of the accelerate configuration"
OFFLOADS = {"offload_optimizer": (1, 2, 3), "offload_param": (3,)}
"""What can be kept in CPU memory, and the stages that can do it."""
BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced at a time, 200 MB in fp32; DeepSpeed's default is ten times that."""


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the model; its backward pass then takes the optimizer's step."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def deepspeed_plugin(training: TrainingConfig, *, bf16: bool, on_cpu: bool) -> DeepSpeedPlugin:
    """Everything that DeepSpeed is told, from the options and what the launcher passed on.

    Must be called before anything imports deepspeed, which looks for its device only once.

    Args:
        training: Sizes of a step, clipping, offloading.
        bf16: Compute under bf16 autocast.
        on_cpu: There is no device; the ranks are CPU processes over gloo.

    Raises:
        UserError: DeepSpeed is not there, cannot do what is asked for, or is told one thing by the
            options and another by the launcher.
    """
    if not is_deepspeed_available():
        raise _refusal(
            "the accelerate configuration asks for DeepSpeed, which is not installed",
            where=f"{LAUNCH_FLAG}={os.environ.get(LAUNCH_FLAG)}",
            remedy="pip install deepspeed --no-build-isolation",
        )
    config = deepspeed_config(training, bf16=bf16, pin_memory=not on_cpu)
    _import_deepspeed(on_cpu)
    if "offload_optimizer" in config["zero_optimization"] and not on_cpu:
        _update_on_all_cores()
    # accelerate takes a whole configuration only from a file, and refuses one beside these names
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    return DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)


def forget_deepspeed_config() -> None:
    """Keeps transformers from building models in pieces; call it once the Accelerator stands.

    The engine divides the whole model that `models` has built. The export is loaded again by one
    process, which could not wait for others.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def deepspeed_config(training: TrainingConfig, *, bf16: bool, pin_memory: bool) -> dict[str, Any]:
    """DeepSpeed's configuration, with everything written out that it or accelerate would guess.

    Args:
        training: Sizes of a step, clipping, offloading.
        bf16: Compute under bf16 autocast.
        pin_memory: Lock the pages of what is offloaded.

    Raises:
        UserError: See `deepspeed_plugin`.
    """
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    launched = _read_launch() if file == "none" else _read_file(Path(file))
    zero = dict(launched["zero_optimization"])
    _check_supported(zero, training)
    fixed = _fixed_values(training, bf16)
    for key, (option, value) in fixed.items():
        _agree(key, launched.get(key), value, option=option)
    zero.setdefault("reduce_bucket_size", BUCKET_ELEMENTS)
    for name, stages in OFFLOADS.items():
        asked = training.enable_cpu_offload and zero["stage"] in stages
        offload = {"pin_memory": pin_memory, **(zero.pop(name, None) or {})}
        if asked or offload.get("device", "none") != "none":
            zero[name] = {**offload, "device": "cpu"}
    ours = {key: value for key, (_, value) in fixed.items()}
    return {**launched, **ours, "zero_optimization": zero}


def _fixed_values(training: TrainingConfig, bf16: bool) -> dict[str, tuple[str, Any]]:
    """Keys of DeepSpeed that are not open to the launcher: what decides them, and their values."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch, accumulation = training.batch_size, training.gradient_accumulation_steps
    return {
        "train_micro_batch_size_per_gpu": ("training.batch_size", micro_batch),
        "gradient_accumulation_steps": ("training.gradient_accumulation_steps", accumulation),
        "train_batch_size": (
            "training.batch_size x gradient_accumulation_steps x processes",
            micro_batch * accumulation * world_size,
        ),
        # accelerate would clip to 1.0
        "gradient_clipping": ("training.max_norm", training.max_norm),
        "bf16": (OURS, {"enabled": False}),
        "fp16": (OURS, {"enabled": False}),
        "torch_autocast": (
            "mixed precision",
            # modules named here would gather weights and sum gradients in bf16
            {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        ),
        "communication_data_type": (OURS, "fp32"),
        "data_types": (OURS, {"grad_accum_dtype": "fp32"}),
        "zero_allow_untested_optimizer": (OURS, True),
        # the run's own optimizer stays, whose state a checkpoint holds
        "zero_force_ds_cpu_optimizer": (OURS, False),
    }


def _read_launch() -> dict[str, Any]:
    """What the keys of `deepspeed_config` say, which reach us as environment variables."""
    zero: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    for name in OFFLOADS:
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_{name.upper()}_DEVICE", "none")
        if device != "none":
            zero[name] = {"device": device}
    launched: dict[str, Any] = {"zero_optimization": zero}
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        value = os.environ.get(f"ACCELERATE_{key.upper()}", "auto")
        if value not in ("auto", "none"):
            launched[key] = float(value)
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false") == "true":
        raise _refusal(
            "zero3_init_flag: true would divide the weights before they have their initial values",
            where=YAML,
            remedy="set zero3_init_flag: false there; the engine divides the model that is built",
        )
    return launched


def _read_file(path: Path) -> dict[str, Any]:
    """The user's own configuration of DeepSpeed; `auto` leaves a value to us."""
    try:
        launched = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(
            f"DeepSpeed's configuration cannot be read: {error}",
            where=f"deepspeed_config_file: {path}",
            remedy="name a JSON file, or remove the key and use zero_stage",
        ) from error
    for key in ("optimizer", "scheduler"):
        if key in launched:
            raise _refusal(
                f"the {key} is chosen by the options of section optimizer",
                where=f"{key} in {path}",
                remedy="remove it there",
            )
    if not isinstance(launched.get("zero_optimization"), dict):
        raise _refusal(
            "the ZeRO stage is missing",
            where=str(path),
            remedy='add "zero_optimization": {"stage": 2}',
        )
    return launched


def _check_supported(zero: Mapping[str, Any], training: TrainingConfig) -> None:
    """Refuses what ZeRO cannot do, and what it would do otherwise than the options say."""
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise _refusal(
            f"ZeRO stage {stage} is not supported; stage 0, which shards nothing, would train on "
            "after gradients that are not finite",
            where=f"zero_stage: {stage} in {YAML}",
            remedy="use stage 1, 2 or 3, or accelerate_configs/ddp.yaml",
        )
    if not training.skip_nan_inf:
        raise _refusal(
            "DeepSpeed skips every update whose gradients are not finite, which contradicts "
            "training.skip_nan_inf = false",
            where="training.skip_nan_inf",
            remedy="leave it true, or use accelerate_configs/fsdp2.yaml",
        )
    if training.compile and stage == 3:
        raise _refusal(
            "compiled code does not see that ZeRO-3 has to gather a weight that one module of a "
            "block takes from another, as fla's do",
            where=f"training.compile, and zero_stage: 3 in {YAML}",
            remedy="use zero_stage: 2 or fsdp2.yaml, or remove training.compile",
        )
    for name, stages in OFFLOADS.items():
        device = (zero.get(name) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise _refusal(
                f"{name} to {device} is not supported",
                where=f"{name}_device: {device} in {YAML}",
                remedy="use cpu or none",
            )
        if device != "none" and stage not in stages:
            raise _refusal(
                f"ZeRO-{stage} keeps the weights whole on every device and cannot offload them",
                where=f"{name}_device: {device} in {YAML}",
                remedy="set it to none, or zero_stage: 3",
            )


def _agree(key: str, launched: Any, ours: Any, *, option: str) -> None:
    """Compares a value of the launcher with the one that the options ask for."""
    if launched is None or launched == "auto" or launched == ours:
        return
    if isinstance(ours, Mapping) and isinstance(launched, Mapping):
        for name, value in ours.items():
            _agree(f"{key}.{name}", launched.get(name), value, option=option)
        return
    named = f"{option} = {ours}" if option != OURS else f"{ours}, which is needed here"
    raise _refusal(
        f"DeepSpeed's {key} = {launched} contradicts {named}",
        where=YAML,
        remedy=f"set {key} to auto there, or remove it",
    )


def _import_deepspeed(on_cpu: bool) -> None:
    """Imports deepspeed for the device that is there, with warnings only."""
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed's affair, once in every process
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    # would be compiled when the process group starts; gloo does the same without a compiler
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _refusal(what: str, *, where: str, remedy: str) -> UserError:
    return UserError(what, where=where, remedy=remedy, exit_code=2)


def _update_on_all_cores() -> None:
    """Shares the cores out between the ranks of this machine for updates in CPU memory.

    torchrun leaves every rank one thread, which is enough for all else.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def optimized_parameters(optimizer: AcceleratedOptimizer) -> Iterator[nn.Parameter]:
    """The parameters that ZeRO's optimizer updates slices of."""
    zero: Any = optimizer.optimizer
    for group in zero.fp16_groups if hasattr(zero, "fp16_groups") else zero.bit16_groups:
        yield from group


def read_deepspeed_step(accelerator: Accelerator, model: nn.Module) -> tuple[Tensor, Tensor]:
    """What the step inside the last `accelerator.backward` did.

    Returns:
        The gradient's norm before clipping, and 1.0 if the update was skipped, else 0.0; both
        0-dimensional and on the device.
    """
    engine: Any = model
    norm, device = engine.get_global_grad_norm(), accelerator.device
    if not isinstance(norm, Tensor):
        # filled on the device: a copy from the host would wait for it
        norm = torch.full((), norm, device=device)
    skipped = torch.full((), float(engine.optimizer.overflow), device=device)
    return norm.to(device, torch.float32, non_blocking=True), skipped


def describe_deepspeed(accelerator: Accelerator) -> tuple[str, str]:
    """The engine and its precision, in words."""
    plugin: Any = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    parts = {"offload_optimizer": "optimizer", "offload_param": "weights"}
    offloaded = [what for name, what in parts.items() if name in zero]
    engine = f"ZeRO-{zero['stage']}"
    if offloaded:
        engine += f" with {' and '.join(offloaded)} in CPU memory"
    return engine, "bf16 autocast" if config["torch_autocast"]["enabled"] else "fp32"
