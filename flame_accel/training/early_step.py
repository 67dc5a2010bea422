"""The optimizer applied within the backward pass, parameter by parameter."""

from torch import Tensor
from torch.optim import Optimizer


class StepInBackward(Optimizer):
    """An optimizer whose updates happen in hooks of the backward pass."""

    def finish_step(self) -> tuple[Tensor, Tensor]:
        """The norm of the gradient that the hooks saw, and 0.0: nothing is skipped."""
        raise NotImplementedError
