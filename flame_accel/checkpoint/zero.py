"""Whole tensors out of DeepSpeed's pieces and back, so that its checkpoints are like all others.

ZeRO's optimizer holds a few flat tensors instead of parameters: each rank its stretch of all
parameters of a group, laid end to end, or under ZeRO-3 its share of every parameter. Weights are
whole on every rank under ZeRO-1 and 2, and gathered one at a time under ZeRO-3. Nothing here holds
more than one whole tensor on a device. Files are read and written in `tensors` and `hf`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from flame_accel.parallel import unwrap
from flame_accel.parallel.sharded_tensors import full_shape


class Fragment(NamedTuple):
    """The elements of a parameter that this rank updates, and where they lie."""

    flat: Tensor
    """What the optimizer has instead of parameters; its state is found under it."""
    start: int
    """Position of the elements in `flat`."""
    offset: int
    """Position of the elements in the flattened parameter."""
    length: int
    """Number of elements; 0 if other ranks update all."""


def weight_shapes(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and persistent buffer of a model by name, whole and without storage."""
    weights = {
        name: torch.empty(full_shape(parameter), dtype=parameter.dtype, device="meta")
        for name, parameter in model.named_parameters()
    }
    stored = model.state_dict().keys()
    return weights | {
        name: torch.empty_like(buffer, device="meta")
        for name, buffer in model.named_buffers()
        if name in stored
    }


def gather_zero_weights(accelerator: Accelerator, engine: nn.Module) -> dict[str, Tensor]:
    """All weights on the main process's CPU; empty elsewhere. Every rank must call it."""
    from deepspeed.runtime.zero import GatheredParameters

    model = unwrap(accelerator, engine)
    gathered: dict[Tensor, Tensor] = {}
    for parameter in model.parameters():
        with GatheredParameters(parameter):
            if accelerator.is_main_process:
                gathered[parameter] = parameter.detach().cpu().clone()
    if not accelerator.is_main_process:
        return {}
    # tied weights go under all their names
    weights = {
        name: gathered[parameter]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    stored = model.state_dict().keys()
    return weights | {name: b.cpu() for name, b in model.named_buffers() if name in stored}


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fills weights and buffers. Every rank must call it with the same; see `finish_weights`."""
    from deepspeed.runtime.zero import GatheredParameters

    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, whole in weights.items():
        if name in buffers:
            buffers[name].copy_(whole)
            continue
        # on leaving, each rank keeps its share of what rank 0 has
        with GatheredParameters(parameters[name], modifier_rank=0), torch.no_grad():
            parameters[name].copy_(whole)


def finish_weights(engine: nn.Module) -> None:
    """Tells ZeRO's optimizer, which updates a copy of its own, that the weights have changed."""
    zero: Any = engine.optimizer
    zero.refresh_fp32_params()


def create_state(engine: nn.Module) -> None:
    """Makes the optimizer create its state, to be overwritten by a loaded one; no weight moves."""
    zero: Any = engine.optimizer
    rates = [group["lr"] for group in zero.param_groups]
    for group in zero.param_groups:
        group["lr"] = 0.0
    for index, flat in enumerate(_flats(zero)):
        # offloaded ones have a gradient that stays
        offloaded = flat.grad is not None
        flat.grad = torch.zeros_like(flat) if flat.grad is None else flat.grad.zero_()
        zero._optimizer_step(index)
        if not offloaded:
            flat.grad = None
    for group, rate in zip(zero.param_groups, rates, strict=True):
        group["lr"] = rate


def state_shapes(model: nn.Module, engine: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<state>`, whole and without storage."""
    return {
        f"{name}.{key}": torch.empty(
            full_shape(parameter) if value.dim() else (), dtype=value.dtype, device="meta"
        )
        for name, parameter, _, state in _states(model, engine)
        for key, value in state.items()
    }


def needed_state(model: nn.Module, engine: nn.Module) -> set[str]:
    """The names of the state that this rank holds some of."""
    return {
        f"{name}.{key}"
        for name, _, fragment, state in _states(model, engine)
        for key in state
        if fragment.length
    }


def put_state(model: nn.Module, engine: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Takes this rank's elements from whole tensors of the optimizer's state."""
    for name, _, fragment, state in _states(model, engine):
        for key, value in state.items():
            whole = tensors.get(f"{name}.{key}")
            if whole is None:
                continue
            if value.dim() == 0:
                value.copy_(whole)
                continue
            _, start, offset, length = fragment
            value.narrow(0, start, length).copy_(whole.flatten().narrow(0, offset, length))


def gather_state(accelerator: Accelerator, engine: nn.Module) -> dict[str, Tensor]:
    """This rank's share of the optimizer's state as `<parameter>.<state>`, whole and on the CPU.

    The ranks share the tensors out, so that together they hold each once. All must call it.
    """
    model = unwrap(accelerator, engine)
    loads = [0] * accelerator.num_processes
    share: dict[str, Tensor] = {}
    for name, parameter, fragment, state in _states(model, engine):
        shape = full_shape(parameter)
        owner = loads.index(min(loads))
        loads[owner] += shape.numel()
        for key, value in state.items():
            if value.dim() == 0:
                # one number for many parameters, which a file must not share
                whole = value.clone()
            else:
                whole = _collect(accelerator, fragment, value, shape, owner)
            if owner == accelerator.process_index:
                share[f"{name}.{key}"] = whole.cpu()
    return share


def _collect(
    accelerator: Accelerator, fragment: Fragment, value: Tensor, shape: torch.Size, owner: int
) -> Tensor:
    """The whole of a state tensor on one rank, from the pieces of all."""
    whole = torch.zeros(shape.numel(), dtype=value.dtype, device=accelerator.device)
    _, start, offset, length = fragment
    whole.narrow(0, offset, length).copy_(value.narrow(0, start, length))
    if accelerator.num_processes > 1:
        # the pieces do not overlap, so that a sum puts them side by side
        torch.distributed.reduce(whole, dst=owner)
    return whole.view(shape)


def _states(
    model: nn.Module, engine: nn.Module
) -> Iterator[tuple[str, nn.Parameter, Fragment, dict[str, Tensor]]]:
    """Name, parameter, this rank's elements and state of all that the optimizer updates."""
    zero: Any = engine.optimizer
    fragments = dict(_fragments(zero))
    for name, parameter in model.named_parameters():
        if parameter in fragments:
            fragment = fragments[parameter]
            yield name, parameter, fragment, zero.state.get(fragment.flat, {})


def _flats(zero: Any) -> list[Tensor]:
    is_stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    return zero.fp32_partitioned_groups_flat if is_stage_3 else zero.single_partition_of_fp32_groups


def _fragments(zero: Any) -> Iterator[tuple[nn.Parameter, Fragment]]:
    """Where this rank's elements of every optimized parameter lie.

    DeepSpeed's own functions for single parameters know the state of the first group only before
    the second step, and refuse parameters whose size the ranks do not divide.
    """
    flats = _flats(zero)
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        rank = torch.distributed.get_rank()
        for parameter in (p for group in zero.fp16_groups for p in group):
            index, start, length = zero.grad_position[zero.get_param_id(parameter)]
            offset = min(rank * length, parameter.ds_numel)
            # the last share is padded
            length = min(length, parameter.ds_numel - offset)
            yield parameter, Fragment(flats[index], start, offset, length)
        return
    for flat, group in zip(flats, zero.bit16_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                yield parameter, Fragment(flat, 0, 0, 0)
                continue
            inside, flattened = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield parameter, Fragment(flat, inside.start, flattened.start, inside.numel)
