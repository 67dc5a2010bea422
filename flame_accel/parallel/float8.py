"""Matrix products in 8-bit floats through torchao: which layers, and how their scales are computed.

The weights stay in fp32 under their names, and are cast for each product; checkpoints and exports
are the same as without.
"""

import importlib
import inspect
import logging
import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from fla.modules import GatedMLP
from torch import nn
from transformers import PreTrainedModel

from flame_accel.config import Float8Config, UsageError, UserError
from flame_accel.parallel.deepspeed import is_deepspeed
from flame_accel.parallel.ranks import tp_size

logger = logging.getLogger(__name__)

SIDE_MULTIPLE = 16
"""What both sides of a weight must be divisible by; tensor cores take blocks of sixteen."""
MIN_SIDE = 128
"""Smaller products are gates and decays, which need their precision and would gain nothing."""
MIN_COMPUTE_CAPABILITY = (8, 9)


def check_float8_support(accelerator: Accelerator, config: Float8Config) -> None:
    """Checks that packages, device and engine support a recipe; without one nothing is checked.

    Raises:
        UserError: They do not.
    """
    if config.recipe_name is None:
        return
    _import_torchao_float8()
    if not config.emulate:
        _check_gpu_supports_float8()
    if is_deepspeed(accelerator) or tp_size(accelerator) > 1:
        raise UsageError(
            "8-bit floats are not supported with DeepSpeed or tensor parallelism",
            where="float8.recipe_name",
            remedy="launch single.yaml, ddp.yaml or fsdp2.yaml, or remove the option",
        )
    if config.enable_fsdp_float8_all_gather and not accelerator.is_fsdp2:
        raise UsageError(
            "no weights are gathered: they are not sharded",
            where="float8.enable_fsdp_float8_all_gather",
            remedy="launch with fsdp2.yaml, or remove the option",
        )


def convert_to_float8(model: PreTrainedModel, config: Float8Config) -> None:
    """Replaces linear layers of a model by torchao's, in place, as the recipe says.

    See `find_float8_layer_names` for which ones.

    Args:
        model: Before it is sharded and compiled, and before its optimizer is built.
        config: Has passed `check_float8_support`; without a recipe nothing changes.

    Raises:
        UserError: No layer can be converted.
    """
    if config.recipe_name is None:
        return
    torchao = _import_torchao_float8()
    for module in model.modules():
        if isinstance(module, GatedMLP):
            # the fused product reads the weight of down_proj, a third of the layer's work
            module.fuse_swiglu = False
    chosen = find_float8_layer_names(model)
    if not chosen:
        raise UserError(
            f"no linear layer of this {model.config.model_type} can compute in 8-bit floats: none "
            f"has sides that are multiples of {SIDE_MULTIPLE} and at least {MIN_SIDE}",
            where="float8.recipe_name",
            remedy="remove the option, or choose a wider model",
        )
    torchao.convert_to_float8_training(
        model,
        config=replace(
            torchao.Float8LinearConfig.from_recipe_name(config.recipe_name),
            enable_fsdp_float8_all_gather=config.enable_fsdp_float8_all_gather,
            emulate=config.emulate,
        ),
        module_filter_fn=lambda _, name: name in chosen,
    )
    weights: list[Any] = [model.get_parameter(f"{name}.weight") for name in chosen]
    if config.enable_fsdp_float8_all_gather:
        for weight in weights:
            # accelerate identifies parameters by address, which torchao's wrapper does not have
            weight.data_ptr = weight._tensor.data_ptr
    fraction = sum(weight.numel() for weight in weights) / sum(
        p.numel() for p in model.parameters()
    )
    logger.info(
        "8-bit floats (%s): %d linear layers with %.0f%% of the parameters",
        config.recipe_name,
        len(chosen),
        100 * fraction,
    )


def find_float8_layer_names(model: PreTrainedModel) -> set[str]:
    """The names of the linear layers that can compute in 8-bit floats.

    All but the head, those with a side under 128 or not a multiple of 16, and those whose weight is
    read outside of their own forward, as fla's fused kernels do.
    """
    head = model.get_output_embeddings()
    return {
        f"{parent_name}.{name}" if parent_name else name
        for parent_name, parent in model.named_modules()
        for name, child in parent.named_children()
        # a subclass does something of its own with its weight
        if type(child) is nn.Linear and child is not head
        if all(side % SIDE_MULTIPLE == 0 and side >= MIN_SIDE for side in child.weight.shape)
        if not _reads_child_weight(parent, name)
    }


def register_float8_scale_hooks(model: nn.Module, optimizer: AcceleratedOptimizer) -> None:
    """Makes a model compute the scales of all sharded weights at once, after each update.

    Otherwise each weight's scale takes an all-reduce of its own before each gathering. Registers
    hooks: scales are computed before the forward pass that follows an update, since a checkpoint
    may be loaded in between.

    Args:
        model: Prepared by FSDP2, with 8-bit gathering.
        optimizer: The prepared optimizer.
    """
    torchao = _import_torchao_float8()
    stale = True

    def compute_scales_if_stale(*_: object) -> None:
        nonlocal stale
        if stale:
            torchao.precompute_float8_dynamic_scale_for_fsdp(model)
        stale = False

    def mark_scales_stale(*_: object) -> None:
        nonlocal stale
        stale = True

    model.register_forward_pre_hook(compute_scales_if_stale)
    optimizer.optimizer.register_step_post_hook(mark_scales_stale)


def _import_torchao_float8() -> ModuleType:
    try:
        return importlib.import_module("torchao.float8")
    except ImportError as error:
        raise UserError(
            f"8-bit floats need torchao, which cannot be imported: {error}",
            where="float8.recipe_name",
            remedy="pip install torchao",
        ) from error


def _check_gpu_supports_float8() -> None:
    found = "there is no GPU"
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability >= MIN_COMPUTE_CAPABILITY:
            return
        found = f"{torch.cuda.get_device_name()} has {capability[0]}.{capability[1]}"
    raise UserError(
        "products in 8-bit floats need a GPU of compute capability 8.9 or above (Ada, Hopper, "
        f"Blackwell): {found}",
        where="float8.recipe_name",
        remedy="remove the option, or add --float8.emulate, which is slow, to try it",
    )


def _reads_child_weight(parent: nn.Module, child_name: str) -> bool:
    """Whether the code of a module reads the values of a child's weight, not only calls it."""
    if isinstance(parent, GatedMLP):
        return parent.fuse_swiglu
    reading = re.compile(
        rf"self\.{re.escape(child_name)}\.weight\b(?!\.(data|device|dtype|shape)\b)"
    )
    return any(
        reading.search(line) and "init." not in line
        for base in type(parent).__mro__
        if issubclass(base, nn.Module) and not base.__module__.startswith("torch.")
        for line in inspect.getsource(base).splitlines()
    )
