"""The gradient of all ranks after the last backward pass: its norm, and clipping to it.

How gradients are summed over ranks is the engine's business; what a step does with the norm is in
`training.step`.
"""

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> Tensor:
    """Scales the gradients of all ranks down to an L2 norm of at most `max_norm`; 0 only measures.

    Returns:
        The norm before clipping, the same on every rank, 0-dimensional and on the device.
    """
    # an infinite bound only measures
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    if not isinstance(norm, Tensor):
        raise RuntimeError("the engine gave no gradient norm")
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
