"""Optimizers by name, and which engines support them.

Which parameters decay is decided in `models.parameter_groups`, the learning rate in `schedule`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from flame_accel.config import OptimizerConfig, UsageError
from flame_accel.models import parameter_groups
from flame_accel.models.parameter_groups import ParameterGroup
from flame_accel.parallel import is_deepspeed, tp_size
from flame_accel.training.adam import AdamOnLocalShards, AdamWOnLocalShards
from flame_accel.training.muon import Muon
from flame_accel.training.optimizer_in_backward import OptimizerInBackward

OPTIMIZERS = {"AdamW": AdamWOnLocalShards, "Adam": AdamOnLocalShards, "Muon": Muon}
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Device types for which torch has fused updates."""


def check_optimizer_support(accelerator: Accelerator, config: OptimizerConfig) -> None:
    """Checks that the engine of a run supports its optimizer.

    Raises:
        UserError: It does not; names engines that do.
    """
    if config.name == "Muon" and is_deepspeed(accelerator):
        raise UsageError(
            "Muon needs whole matrices, and DeepSpeed gives the optimizer flat slices of them",
            where="optimizer.name",
            remedy="launch with fsdp2.yaml, which shards as ZeRO does, or use AdamW",
        )
    if not config.early_step_in_backward:
        return
    if is_deepspeed(accelerator):
        reason = "DeepSpeed takes the optimizer's step itself"
    elif tp_size(accelerator) > 1:
        reason = "tensor parallelism completes some gradients only after it"
    elif accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        reason = "DDP averages the gradients only after it"
    else:
        return
    raise UsageError(
        f"the optimizer cannot be applied within the backward pass: {reason}",
        where="optimizer.early_step_in_backward",
        remedy="launch with single.yaml or fsdp2.yaml, or remove the option",
    )


def build_optimizer(
    accelerator: Accelerator, model: PreTrainedModel, config: OptimizerConfig
) -> Optimizer:
    """Builds the optimizer of a run over the parameter groups of a model.

    Args:
        accelerator: The run's Accelerator, which has passed `check_optimizer_support`.
        model: Transformed, but not yet prepared.
        config: Name and hyperparameters.
    """
    groups = parameter_groups(model, config.weight_decay)
    build: Any = OPTIMIZERS[config.name]
    if config.name == "Muon":
        groups = list(_split_groups_by_matrices(groups, find_hidden_matrices(model)))
    if config.early_step_in_backward:
        build = partial(OptimizerInBackward, decoupled_weight_decay=config.name == "AdamW")
    return build(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=config.fused and accelerator.device.type in FUSED_DEVICES,
    )


def find_hidden_matrices(model: PreTrainedModel) -> set[Tensor]:
    """The weights of a model's linear layers, without its head and embeddings.

    No norms, biases, convolutions or decay parameters, and no matrix of a single row or column.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {parameter for end in ends if end is not None for parameter in end.parameters()}
    # from the table of parameters: under tensor parallelism the attribute is a local tensor
    weights: set[Tensor] = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for name, parameter in module.named_parameters(recurse=False)
        if name == "weight" and min(parameter.shape) > 1
    }
    return weights - outside


def _split_groups_by_matrices(
    groups: list[ParameterGroup], matrices: set[Tensor]
) -> Iterator[ParameterGroup]:
    """The same groups, each divided into its matrices and the rest, marked by `matrices`."""
    for group in groups:
        for is_matrix in (True, False):
            chosen = [p for p in group["params"] if (p in matrices) is is_matrix]
            if chosen:
                yield {**group, "params": chosen, "matrices": is_matrix}
