"""Parameters that FSDP2 ignores and every rank keeps in full, in fp32: those of fla's decays.

FSDP2 gathers all parameters of a group in one dtype. A_log and dt_bias go through exponentials that
are multiplied over a whole sequence, where the rounding of bf16 accumulates; they are a few numbers
for each head, so that sharding them gains nothing either. Nobody averages the gradients of what
FSDP2 ignores: this module does. `models.parameter_groups` knows which parameters these are.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed import all_reduce
from transformers import PreTrainedModel

from flame_accel.models import fp32_parameter_names
from flame_accel.parallel.ranks import dp_group
from flame_accel.parallel.sharded_tensors import (
    detached_shard_or_tensor_itself,
    gradient_in_parameter_placements,
)


def move_fp32_parameters_and_ignore_if_fsdp2(
    accelerator: Accelerator, model: PreTrainedModel
) -> None:
    """Makes FSDP2 ignore the parameters that fla needs in fp32; other engines change nothing.

    Args:
        accelerator: Its FSDP plugin gets the ignored parameters.
        model: Before it is prepared; the ignored parameters move to the device, in place.
    """
    if not accelerator.is_fsdp2:
        return
    names = set(fp32_parameter_names(model))
    ignored = [parameter for name, parameter in model.named_parameters() if name in names]
    for parameter in ignored:
        # FSDP2 does not move what it ignores, and with offloading the rest stays on the CPU
        parameter.data = parameter.data.to(accelerator.device)
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    plugin.ignored_modules = [nn.ParameterList(ignored)]


def ignored_fp32_parameters(accelerator: Accelerator) -> list[nn.Parameter]:
    """The parameters that FSDP2 ignores, in the model's order; none under other engines."""
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    ignored = plugin.ignored_modules if plugin is not None else None
    if not ignored or isinstance(ignored, str):
        return []
    return [parameter for module in ignored for parameter in module.parameters()]


@torch.no_grad()
def average_fsdp2_ignored_gradients(accelerator: Accelerator) -> None:
    """Averages the gradients of ignored parameters over the data-parallel ranks, in place.

    One all-reduce for all of them; to be called by all ranks once per step, after the last backward
    pass. A gradient that is missing on a rank counts as zeros.
    """
    gradients = []
    for parameter in ignored_fp32_parameters(accelerator):
        if parameter.grad is None:
            # this rank's batches did not reach the parameter
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = gradient_in_parameter_placements(parameter)
        gradients.append(detached_shard_or_tensor_itself(parameter.grad))
    if not gradients or accelerator.num_processes == 1:
        return
    group = dp_group(accelerator)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    all_reduce(flat, group=group)
    flat /= torch.distributed.get_world_size(group)
    means = flat.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
