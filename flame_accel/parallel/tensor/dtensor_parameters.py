"""Parameters that are DTensors to optimizer and checkpoints, and plain tensors to their layer.

fla's layers and kernels read `module.weight` and compute with what they get. So that they run
unchanged on a local shard, a module gets a subclass in which such an attribute is a property; the
DTensor itself stays in the module's table of parameters, where `named_parameters`, `state_dict` and
FSDP2 look for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from flame_accel.parallel.sharded_tensors import ShardExtent, shard_start_and_length
from flame_accel.parallel.tensor.instance_patching import subclass_instance_in_place

LocalTransform = Callable[[Tensor], Tensor]
"""What a layer reads in place of the local tensor of a parameter; differentiable."""


def tp_shard_start_and_length(size: int, mesh: DeviceMesh) -> ShardExtent:
    """The part of a dimension of `size` elements that this rank of a TP mesh holds."""
    return shard_start_and_length(size, mesh.size(), mesh.get_local_rank())


def shard_parameter(
    parameter: nn.Parameter, mesh: DeviceMesh, dim: int | None, device: torch.device
) -> nn.Parameter:
    """This rank's shard of a full parameter, as a new DTensor parameter on a device.

    Args:
        parameter: Full, with the same values on all TP ranks.
        mesh: The one-dimensional TP mesh.
        dim: Dimension along which it is sharded; None replicates it.
        device: Device of the new parameter.

    Returns:
        A parameter with the full shape, and the attributes that were set on the old one.
    """
    local = parameter.detach()
    if dim is not None:
        local = local.narrow(dim, *tp_shard_start_and_length(parameter.shape[dim], mesh))
    tensor = DTensor.from_local(
        local.to(device, copy=True, memory_format=torch.contiguous_format),
        mesh,
        [Replicate() if dim is None else Shard(dim)],
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    sharded = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    for name, value in vars(parameter).items():
        setattr(sharded, name, value)
    return sharded


def differentiable_shard_or_raise_if_fsdp_sharded(parameter: Tensor) -> Tensor:
    """This TP rank's shard of a parameter, differentiable.

    Raises:
        RuntimeError: FSDP2 has the parameter sharded over data-parallel ranks as well.
    """
    assert isinstance(parameter, DTensor)
    if parameter.device_mesh.ndim > 1:
        raise RuntimeError("a weight is read that FSDP2 has not gathered from the data ranks")
    return parameter.to_local()


def make_attribute_read_local_tensor(
    module: nn.Module, parameter_name: str, transform: LocalTransform
) -> None:
    """Makes a parameter's attribute read as `transform` of its local tensor, in place."""

    def read_transformed_local_or_fsdp_sharded_parameter(self: nn.Module) -> Tensor:
        parameter = self._parameters[parameter_name]
        assert isinstance(parameter, DTensor)
        # while FSDP2 has it sharded over data-parallel ranks too, it is FSDP2 that reads it
        return transform(parameter.to_local()) if parameter.device_mesh.ndim == 1 else parameter

    subclass_instance_in_place(
        module, {parameter_name: property(read_transformed_local_or_fsdp_sharded_parameter)}
    )
