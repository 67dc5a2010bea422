"""Parameters that are DTensors to the optimizer and to checkpoints, and plain ones to their layer.

The layers of fla, and its kernels, read `module.weight` and compute with what they get. So that
they run unchanged on a peer's share, a module whose parameters are split gets a class of its own,
derived from its class and of the same name, in which such an attribute is a property; the DTensor
itself stays in the module's table of parameters, where `named_parameters`, `state_dict` and FSDP2
look for it.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

View = Callable[[Tensor], Tensor]
"""What a layer gets for the peer's share of a parameter."""


def share(size: int, mesh: DeviceMesh) -> tuple[int, int]:
    """Start and length of this peer's share of `size` rows; the last ones may get fewer."""
    most = -(-size // mesh.size())
    start = min(mesh.get_local_rank() * most, size)
    return start, min(most, size - start)


def distribute(
    parameter: nn.Parameter, mesh: DeviceMesh, dim: int | None, device: torch.device
) -> nn.Parameter:
    """This peer's share of a parameter that all peers have whole, as a DTensor on a device.

    Args:
        parameter: Whole, with the same values on all peers.
        mesh: One-dimensional, of the peers.
        dim: Along which it is split; None leaves it whole.
        device: Of the mesh.

    Returns:
        A new parameter with the marks of the old one.
    """
    local = parameter.detach()
    if dim is not None:
        local = local.narrow(dim, *share(parameter.shape[dim], mesh))
    tensor = DTensor.from_local(
        local.to(device, copy=True, memory_format=torch.contiguous_format),
        mesh,
        [Replicate() if dim is None else Shard(dim)],
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    split = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    for mark, value in vars(parameter).items():
        setattr(split, mark, value)
    return split


def local_share(parameter: Tensor) -> Tensor:
    """This peer's share of a parameter, with its gradient."""
    assert isinstance(parameter, DTensor)
    if parameter.device_mesh.ndim > 1:
        raise RuntimeError("a weight is read that FSDP2 has not gathered from the data ranks")
    return parameter.to_local()


def show_locally(module: nn.Module, name: str, view: View) -> None:
    """Makes `module.<name>`, a parameter of its own, the view of the peer's share."""

    def read(self: nn.Module) -> Tensor | None:
        parameter = self._parameters[name]
        assert isinstance(parameter, DTensor)
        # while FSDP2 has it sharded over data ranks too, it is FSDP2 that reads it
        return view(parameter.to_local()) if parameter.device_mesh.ndim == 1 else parameter

    subclass_instance(module, {name: property(read)})


def subclass_instance(module: nn.Module, members: dict[str, Any]) -> None:
    """Gives a module, and none but it, other members of its class, whose name it keeps."""
    base = type(module)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    module.__class__ = type(base.__name__, (base,), names | members)


def replace_globals(module: nn.Module, functions: dict[str, Callable[..., Any]]) -> None:
    """Lets a module's forward call other functions under the names of global ones.

    The globals themselves, which other modules share, stay as they are.
    """
    forward: Any = type(module).forward
    missing = functions.keys() - forward.__globals__.keys()
    if missing:
        raise RuntimeError(f"{type(module).__name__}.forward has no {', '.join(sorted(missing))}")
    copy = FunctionType(
        forward.__code__,
        forward.__globals__ | functions,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    subclass_instance(module, {"forward": copy})
