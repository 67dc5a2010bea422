"""Parameters that FSDP2 leaves whole, in fp32, on every rank: those of fla's decays.

FSDP2 gathers all parameters of a group in one type. A_log and dt_bias go through exponentials that
are multiplied over a whole sequence, where the rounding of bf16 piles up; they are a few numbers
for each head, so that sharding them gains nothing either. What FSDP2 ignores nobody sums: this
module does. Which parameters these are is known to `models.parameters`.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from flame_accel.models import fp32_parameters


def ignore_fp32_params(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Makes FSDP2 ignore what fla computes with in fp32; nothing happens under other engines.

    Args:
        accelerator: Of the run.
        model: Before it is prepared; the parameters concerned move to the device.
    """
    if not accelerator.is_fsdp2:
        return
    names = set(fp32_parameters(model))
    whole = [parameter for name, parameter in model.named_parameters() if name in names]
    for parameter in whole:
        # FSDP2 does not move what it ignores, and with offloading the rest stays on the CPU
        parameter.data = parameter.data.to(accelerator.device)
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    plugin.ignored_modules = [nn.ParameterList(whole)]


def ignored_fp32_parameters(accelerator: Accelerator) -> list[nn.Parameter]:
    """The parameters that FSDP2 ignores, in the model's order."""
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    ignored = plugin.ignored_modules if plugin is not None else None
    if not ignored or isinstance(ignored, str):
        return []
    return [parameter for module in ignored for parameter in module.parameters()]


@torch.no_grad()
def average_ignored_gradients(accelerator: Accelerator) -> None:
    """Averages the gradients of whole parameters over the data ranks, all in one exchange.

    To be called once per step, after the last backward pass.
    """
    shares = [_local_gradient(parameter) for parameter in ignored_fp32_parameters(accelerator)]
    if not shares or accelerator.num_processes == 1:
        return
    mesh = accelerator.torch_device_mesh
    group = mesh["dp"].get_group() if mesh is not None else None
    flat = torch.cat([share.flatten() for share in shares])
    all_reduce(flat, group=group)
    flat /= torch.distributed.get_world_size(group)
    for share, mean in zip(shares, flat.split([s.numel() for s in shares]), strict=True):
        share.copy_(mean.view_as(share))


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a gradient; zeros where its batches did not reach the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if isinstance(parameter.grad, DTensor) and isinstance(parameter, DTensor):
        # of a weight that tensor parallelism replicates, each peer may have a summand only
        parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
    gradient = parameter.grad
    return gradient._local_tensor if isinstance(gradient, DTensor) else gradient
