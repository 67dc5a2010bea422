"""Optimizers by name.

Which parameters decay is decided in `models.parameters`, the learning rate in `schedule`.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from flame_accel.config import OptimizerConfig, UserError
from flame_accel.models import parameter_groups

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Builds the optimizer of a run over the groups of a model's parameters.

    Raises:
        UserError: The optimizer's name is not known.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(
            f"unknown optimizer {config.name!r}",
            where="optimizer.name",
            remedy=f"one of {', '.join(OPTIMIZERS)}",
        )
    return OPTIMIZERS[config.name](
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=config.fused,
    )
