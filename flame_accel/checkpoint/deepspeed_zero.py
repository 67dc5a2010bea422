"""DeepSpeed ZeRO's partitions to full tensors and back, so that checkpoints are like all others.

ZeRO's optimizer holds a few flat tensors instead of parameters: under ZeRO-1 and 2, each rank's
slice of all parameters of a group, concatenated; under ZeRO-3, each rank's partition of every
parameter. Weights are full on every rank under ZeRO-1 and 2, and gathered one at a time under
ZeRO-3. At most one full tensor is on a device at a time. Files are read and written in
`tensor_storage` and `hf_model`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from flame_accel.parallel import unwrap_model
from flame_accel.parallel.sharded_tensors import full_shape


class Fragment(NamedTuple):
    """The elements of a parameter that this rank updates, and where they are."""

    flat: Tensor
    """What the optimizer has instead of parameters, and the key of its state."""
    start: int
    """Position of the elements in `flat`."""
    offset: int
    """Position of the elements in the flattened parameter."""
    length: int
    """Number of elements; 0 if other ranks update all of them."""


class ParameterFragmentAndFlatState(NamedTuple):
    """A parameter that the optimizer updates, and this rank's part of its optimizer state."""

    name: str
    parameter: nn.Parameter
    fragment: Fragment
    state: dict[str, Tensor]
    """By the optimizer's own keys, of the whole `fragment.flat`; scalars as they are."""


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a model's state dict contains, by name: not copies."""
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def full_weights_on_meta(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and persistent buffer of a model by name, full size, on the meta device."""
    weights = {
        name: torch.empty(full_shape(parameter), dtype=parameter.dtype, device="meta")
        for name, parameter in model.named_parameters()
    }
    buffers = persistent_buffers(model)
    return weights | {name: torch.empty_like(b, device="meta") for name, b in buffers.items()}


def gather_zero_weights_to_main(
    accelerator: Accelerator,
    engine: nn.Module,
    dtype: torch.dtype,
    *,
    to_cpu: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """All weights on the main process's CPU, floating-point ones in `dtype`; empty elsewhere.

    Every rank must call it. One weight is gathered at a time. `to_cpu` copies a tensor to the CPU,
    or begins to.
    """
    from deepspeed.runtime.zero import GatheredParameters

    model = unwrap_model(accelerator, engine)
    gathered: dict[Tensor, Tensor] = {}
    # gathering takes several times the memory of a weight: the large ones while there are few
    for parameter in sorted(model.parameters(), key=_count_full_elements, reverse=True):
        with GatheredParameters(parameter):
            if accelerator.is_main_process:
                # a copy, since what was gathered is freed when the block ends
                gathered[parameter] = to_cpu(parameter.detach().to(dtype, copy=True))
    if not accelerator.is_main_process:
        return {}
    # tied weights are listed under all their names
    weights = {
        name: gathered[parameter]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    buffers = persistent_buffers(model)
    return weights | {
        name: to_cpu(buffer.to(dtype) if buffer.is_floating_point() else buffer)
        for name, buffer in buffers.items()
    }


def _count_full_elements(parameter: Tensor) -> int:
    return full_shape(parameter).numel()


def copy_into_zero_bit16_weights(model: nn.Module, full_weights: Mapping[str, Tensor]) -> None:
    """Overwrites weights and buffers by full tensors of the same names.

    Every rank must call it with the same tensors; `refresh_fp32_copies` completes it.
    """
    from deepspeed.runtime.zero import GatheredParameters

    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, full in full_weights.items():
        if name in buffers:
            buffers[name].copy_(full)
            continue
        # on exit, each rank keeps its partition of what rank 0 has
        with GatheredParameters(parameters[name], modifier_rank=0), torch.no_grad():
            parameters[name].copy_(full)


def refresh_fp32_copies(engine: nn.Module) -> None:
    """Copies changed weights into the fp32 tensors that ZeRO's optimizer updates."""
    zero: Any = engine.optimizer
    zero.refresh_fp32_params()


def initialize_zero_optimizer_state(engine: nn.Module) -> None:
    """Makes the optimizer create its state, so that it can be overwritten; no weight changes."""
    zero: Any = engine.optimizer
    rates = [group["lr"] for group in zero.param_groups]
    for group in zero.param_groups:
        group["lr"] = 0.0
    for index, flat in enumerate(_flat_fp32_tensors_of_rank(zero)):
        # offloaded ones have a gradient that stays
        offloaded = flat.grad is not None
        flat.grad = torch.zeros_like(flat) if flat.grad is None else flat.grad.zero_()
        zero._optimizer_step(index)
        if not offloaded:
            flat.grad = None
    for group, rate in zip(zero.param_groups, rates, strict=True):
        group["lr"] = rate


def full_optimizer_state_on_meta(model: nn.Module, engine: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<state>`, full size, on the meta device."""
    return {
        f"{name}.{key}": torch.empty(
            full_shape(parameter) if value.dim() else (), dtype=value.dtype, device="meta"
        )
        for name, parameter, _, state in _iterate_optimized_parameters(model, engine)
        for key, value in state.items()
    }


def local_optimizer_state_names(model: nn.Module, engine: nn.Module) -> set[str]:
    """Names, as in `full_optimizer_state_on_meta`, of the state that this rank has elements of."""
    return {
        f"{name}.{key}"
        for name, _, fragment, state in _iterate_optimized_parameters(model, engine)
        for key in state
        if fragment.length
    }


def copy_into_local_optimizer_state(
    model: nn.Module, engine: nn.Module, full_tensors: Mapping[str, Tensor]
) -> None:
    """Overwrites this rank's elements of the optimizer's state from full tensors.

    Args:
        model: The unwrapped model, for the names of its parameters.
        engine: DeepSpeed's engine.
        full_tensors: Full tensors named as in `full_optimizer_state_on_meta`; state without one is
            kept.
    """
    for name, _, fragment, state in _iterate_optimized_parameters(model, engine):
        for key, value in state.items():
            full = full_tensors.get(f"{name}.{key}")
            if full is None:
                continue
            if value.dim() == 0:
                value.copy_(full)
                continue
            _, start, offset, length = fragment
            value.narrow(0, start, length).copy_(full.flatten().narrow(0, offset, length))


def gather_zero_optimizer_state_per_owner(
    accelerator: Accelerator, engine: nn.Module, *, to_cpu: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Full tensors of the optimizer's state as `<parameter>.<state>`, on the CPU.

    Each tensor is on exactly one rank, and all ranks have about as many elements. Every rank must
    call it. `to_cpu` copies a tensor to the CPU, or begins to.
    """
    model = unwrap_model(accelerator, engine)
    loads = [0] * accelerator.num_processes
    owned: dict[str, Tensor] = {}
    for name, parameter, fragment, state in _iterate_optimized_parameters(model, engine):
        shape = full_shape(parameter)
        owner = loads.index(min(loads))
        loads[owner] += shape.numel()
        for key, value in state.items():
            if value.dim() == 0:
                # the optimizer shares one scalar between parameters; tensors in a file must not
                # share memory
                full = value.clone()
            else:
                full = _assemble_full_state_on_owner(accelerator, fragment, value, shape, owner)
            if owner == accelerator.process_index:
                owned[f"{name}.{key}"] = to_cpu(full)
    return owned


def _assemble_full_state_on_owner(
    accelerator: Accelerator,
    fragment: Fragment,
    local_values: Tensor,
    full_shape: torch.Size,
    owner_rank: int,
) -> Tensor:
    """Assembles one full state tensor on rank `owner_rank` from the fragments of all ranks.

    Returns:
        [*full_shape]; complete on `owner_rank` only.
    """
    full = torch.zeros(full_shape.numel(), dtype=local_values.dtype, device=accelerator.device)
    _, start, offset, length = fragment
    full.narrow(0, offset, length).copy_(local_values.narrow(0, start, length))
    if accelerator.num_processes > 1:
        # the fragments do not overlap, so that their sum is their concatenation
        torch.distributed.reduce(full, dst=owner_rank)
    return full.view(full_shape)


def _iterate_optimized_parameters(
    model: nn.Module, engine: nn.Module
) -> Iterator[ParameterFragmentAndFlatState]:
    """All parameters that the optimizer updates, in the model's order."""
    zero: Any = engine.optimizer
    fragments = dict(_iterate_local_fragments(zero))
    for name, parameter in model.named_parameters():
        if parameter in fragments:
            fragment = fragments[parameter]
            yield ParameterFragmentAndFlatState(
                name, parameter, fragment, zero.state.get(fragment.flat, {})
            )


def _flat_fp32_tensors_of_rank(zero_optimizer: Any) -> list[Tensor]:
    """The flat tensors of this rank's partition, one or more per parameter group."""
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        return zero_optimizer.fp32_partitioned_groups_flat
    return zero_optimizer.single_partition_of_fp32_groups


def _iterate_local_fragments(zero_optimizer: Any) -> Iterator[tuple[nn.Parameter, Fragment]]:
    """Every optimized parameter with this rank's elements of it.

    DeepSpeed's own functions for single parameters know the state of the first group only before
    the second step, and refuse parameters whose size is not divisible by the number of ranks.
    """
    flats = _flat_fp32_tensors_of_rank(zero_optimizer)
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        rank = torch.distributed.get_rank()
        for parameter in (p for group in zero_optimizer.fp16_groups for p in group):
            index, start, length = zero_optimizer.grad_position[
                zero_optimizer.get_param_id(parameter)
            ]
            offset = min(rank * length, parameter.ds_numel)
            # the last partition is padded
            length = min(length, parameter.ds_numel - offset)
            yield parameter, Fragment(flats[index], start, offset, length)
        return
    for flat, group in zip(flats, zero_optimizer.bit16_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                yield parameter, Fragment(flat, 0, 0, 0)
                continue
            inside, flattened = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield parameter, Fragment(flat, inside.start, flattened.start, inside.numel)
