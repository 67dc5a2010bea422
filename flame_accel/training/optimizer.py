"""Optimizers by name.

Which parameters decay is decided in `models.parameters`, the learning rate in `schedule`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from flame_accel.config import OptimizerConfig, UserError

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
}


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """Builds the optimizer of a run over parameter groups that carry their own `weight_decay`.

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
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=config.fused,
    )
