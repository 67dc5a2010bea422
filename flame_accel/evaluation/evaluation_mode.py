"""The state in which a model is evaluated, from which training goes on as if nothing had been."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from flame_accel.training.rng_state import get_all_rng_states_as_json, set_all_rng_states


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients in the block; modes and random states are as before after it.

    Every module gets back its own mode: parts of a model may be kept out of training mode.
    """
    training = {module: module.training for module in model.modules()}
    random_states = get_all_rng_states_as_json()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        set_all_rng_states(random_states)
