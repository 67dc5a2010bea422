"""Optimizers by name.

Which parameters decay is decided in `models.parameters`, the learning rate in `schedule`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from flame_accel.config import OptimizerConfig, UserError
from flame_accel.models import parameter_groups
from flame_accel.parallel import is_deepspeed, tp_size
from flame_accel.training.adam import Adam, AdamW
from flame_accel.training.muon import Muon
from flame_accel.training.optimizer_in_backward import OptimizerInBackward

OPTIMIZERS = {"AdamW": AdamW, "Adam": Adam, "Muon": Muon}
# what torch's fused updates are written for
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def build_optimizer(
    accelerator: Accelerator, model: PreTrainedModel, config: OptimizerConfig
) -> Optimizer:
    """Builds the optimizer of a run over the groups of a model's parameters, before `prepare`.

    Raises:
        UserError: The engine does not allow what the options ask for.
    """
    groups = parameter_groups(model, config.weight_decay)
    build: Any = OPTIMIZERS[config.name]
    if config.name == "Muon":
        _check_muon(accelerator)
        groups = list(_split_off_matrices(groups, hidden_matrices(model)))
    if config.early_step_in_backward:
        _check_optimizer_in_backward(accelerator)
        build = partial(OptimizerInBackward, decoupled_weight_decay=config.name == "AdamW")
    return build(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=config.fused and accelerator.device.type in FUSED_DEVICES,
    )


def hidden_matrices(model: PreTrainedModel) -> set[Tensor]:
    """The weights of a model's linear layers, but not of its head and embeddings.

    No norms, biases, convolutions or decay parameters, and no row or column, which is a vector.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {parameter for end in ends if end is not None for parameter in end.parameters()}
    # by the table of parameters: where a matrix is split, the attribute is this rank's share
    weights: set[Tensor] = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for name, parameter in module.named_parameters(recurse=False)
        if name == "weight" and min(parameter.shape) > 1
    }
    return weights - outside


def _split_off_matrices(
    groups: list[dict[str, Any]], matrices: set[Tensor]
) -> Iterator[dict[str, Any]]:
    for group in groups:
        for wanted in (True, False):
            chosen = [p for p in group["params"] if (p in matrices) is wanted]
            if chosen:
                yield {**group, "params": chosen, "matrices": wanted}


def _check_muon(accelerator: Accelerator) -> None:
    if is_deepspeed(accelerator):
        raise UserError(
            "Muon needs whole matrices, and DeepSpeed gives the optimizer flat pieces of them",
            where="optimizer.name",
            remedy="launch with fsdp2.yaml, which shards as ZeRO does, or use AdamW",
            exit_code=2,
        )


def _check_optimizer_in_backward(accelerator: Accelerator) -> None:
    if is_deepspeed(accelerator):
        why = "DeepSpeed takes the optimizer's step itself"
    elif tp_size(accelerator) > 1:
        why = "tensor parallelism completes some gradients only after it"
    elif accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        why = "DDP averages the gradients only after it"
    else:
        return
    raise UserError(
        f"the optimizer cannot be applied within the backward pass: {why}",
        where="optimizer.early_step_in_backward",
        remedy="launch with single.yaml or fsdp2.yaml, or remove the option",
        exit_code=2,
    )
