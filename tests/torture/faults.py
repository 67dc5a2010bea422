"""What is done to a process of a run before it begins, so that something goes wrong in it later."""

import os
from collections.abc import Callable
from typing import Any

from tests.torture.system_calls import CallFault, supervise_calls_of_this_process


def prepare_rank(
    *,
    calls: dict[str, str] | None = None,
    fault: list[Any] | None = None,
    faulty_rank: int = 0,
    poison: dict[str, Any] | None = None,
) -> None:
    """Prepares this process, a rank of a run that has not begun.

    Args:
        calls: Folder and log of `supervise_calls_of_this_process`; -RANK is added to the latter.
        fault: Fields of a `CallFault`; None if no call is to fail.
        faulty_rank: Where.
        poison: Arguments of `poison_gradient`.
    """
    if calls is not None:
        rank = int(os.environ.get("RANK", "0"))
        own_fault = CallFault(*fault) if fault is not None and rank == faulty_rank else None
        supervise_calls_of_this_process(calls["folder"], f"{calls['log']}-{rank}", own_fault)
    if poison is not None:
        poison_gradient(**poison)


def poison_gradient(*, step: int, ranks: list[int], in_shard: bool) -> None:
    """The gradient of an update is not finite on some ranks.

    Args:
        step: Of the update, counted from 1 at the start of the run.
        ranks: Where.
        in_shard: One number of what the rank has after all ranks' gradients were reduced; else all
            of what its own loss gives.
    """
    import torch

    from flame_accel.training import step as module

    if int(os.environ.get("RANK", "0")) not in ranks:
        return
    name = (
        "clip_gradients_and_get_norm" if in_shard else "compute_unscaled_nats_over_global_targets"
    )
    original: Callable[..., Any] = getattr(module, name)
    done = 0

    def poisoned(accelerator: Any, model: torch.nn.Module, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == step and in_shard:
            gradient: Any = next(model.parameters()).grad
            gradient.to_local().view(-1)[0] = torch.nan
        result = original(accelerator, model, *arguments)
        if done == step and not in_shard:
            result.register_hook(lambda gradient: gradient * torch.nan)
        return result

    setattr(module, name, poisoned)
