"""Collectives over the ranks of a run, outside of its model; with one rank nothing is exchanged.

Those inside a model, with gradients, are in `tensor/differentiable_collectives`.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed import ProcessGroup

from flame_accel.config import UserError
from flame_accel.parallel.ranks import tp_size
from flame_accel.parallel.timeouts import (
    EXTENDED_TIMEOUT_SECONDS,
    groups_that_keep_their_timeout,
)

Result = TypeVar("Result")
_ended_groups: list[ProcessGroup] = []
"""Groups that were destroyed, and whose objects are kept."""


def run_on_main_and_broadcast(accelerator: Accelerator, compute: Callable[[], Result]) -> Result:
    """Calls `compute` on the main process; every rank gets its result, which must be picklable.

    Raises:
        UserError: On every rank, where `compute` raised it. Another exception is raised as it is on
            the main process, and as a `UserError` that names it on the others, which would wait
            for the main process otherwise.
    """
    outcome: list[Any] = [None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome = [compute()]
        except UserError as error:
            outcome = [error]
        except Exception as error:
            failure = error
            outcome = [UserError(f"the main process failed: {type(error).__name__}: {error}")]
    [result] = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if isinstance(result, UserError):
        raise result
    return result


class AnyRankAgrees:
    """Tells every rank whether any of them says yes; over the hosts, no device waits for it.

    Args:
        accelerator: The run's accelerator. Every rank must construct it at the same place.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        several = accelerator.num_processes > 1
        self._group = torch.distributed.new_group(backend="gloo") if several else None

    def __call__(self, answer: bool) -> bool:
        """Whether any rank's answer is yes. Every rank must call it."""
        if self._group is None:
            return answer
        answers = torch.tensor([answer], dtype=torch.uint8)
        torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MAX, self._group)
        return bool(answers.item())


class HostGroup:
    """All ranks, over their hosts, for a thread beside training; no device is used.

    Collectives of two threads would be mixed up within one group. This one waits long: a rank may
    be busy with files.

    Args:
        accelerator: The run's accelerator. Every rank must construct it at the same place.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._group: Any = None
        if accelerator.num_processes > 1:
            timeout = timedelta(seconds=EXTENDED_TIMEOUT_SECONDS)
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)
            groups_that_keep_their_timeout.add(self._group)

    def gather_objects(self, own: Result) -> list[Result]:
        """What every rank gave, picklable, by rank, on every rank. Every rank must call it."""
        if self._group is None:
            return [own]
        gathered: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(gathered, own, self._group)
        return gathered


def end_training_and_destroy_groups(accelerator: Accelerator) -> None:
    """Ends the process groups; the groups' objects stay until this process ends.

    DDP's reducer would free the last reference with the GIL held, and join gloo's thread, which may
    be waiting for the GIL to free the tensors of its last broadcast: a deadlock.
    """
    _ended_groups.extend(torch.distributed.distributed_c10d._world.pg_map)
    accelerator.end_training()


def widest_float_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type for sums that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def all_reduce_sum_over_dp(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The element-wise sum over the data-parallel ranks, on every rank.

    TP ranks hold the same tensor, which counts once.
    """
    if accelerator.num_processes == 1:
        return tensor
    total: Any = accelerator.reduce(tensor, "sum")
    copies = tp_size(accelerator)
    if copies == 1:
        return total
    return total / copies if total.is_floating_point() else total // copies


def all_gather_over_dp(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The tensors [...] of the data-parallel ranks [dp ranks, ...], on every rank.

    They have the same shape on every rank; of TP ranks, which hold the same tensor, one counts.
    """
    if accelerator.num_processes == 1:
        return tensor[None]
    return all_gather_stacked(tensor)[:: tp_size(accelerator)]


def all_gather_concatenated(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The tensors [n] of all ranks, concatenated in rank order [ranks * n], on every rank."""
    if accelerator.num_processes == 1:
        return tensor
    gathered: Any = accelerator.gather(tensor)
    return gathered


def all_gather_stacked(tensor: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The tensors [...] of all ranks of a group [ranks, ...]; None stands for all ranks.

    Needs a process group, and the same shape on every rank.
    """
    gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, tensor, group=group)
    return torch.stack(gathered)
