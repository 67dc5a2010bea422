"""The tensors of a checkpoint: from a prepared model and optimizer into safetensors, and back.

Reading and writing of shards goes through torch.distributed.checkpoint's Hugging Face storage, so
that a checkpoint loads into any engine and world size, and nothing is unpickled. The model is
written in `hf`, since it is one that `from_pretrained` reads; DeepSpeed's pieces are put together
and taken apart in `zero`.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from flame_accel.checkpoint import zero
from flame_accel.config import UserError
from flame_accel.parallel import is_deepspeed, unwrap

BATCH_BYTES = 1 << 30
"""Where whole tensors are read on every rank, so much of them is in memory at a time."""


def load_weights(accelerator: Accelerator, model: nn.Module, folder: Path) -> None:
    """Fills a prepared model from the safetensors of a Hugging Face model folder, in any dtype.

    Raises:
        UserError: They are of another model.
    """
    inner = unwrap(accelerator, model)
    if is_deepspeed(accelerator):
        put, shapes = partial(zero.put_weights, inner), zero.weight_shapes(inner)
        _load_whole(shapes, folder, put, also_known=inner.state_dict().keys())
        zero.finish_weights(model)
        return
    # tied weights are stored once, and loading them once fills all
    weights: dict[str, Tensor] = {name: p.detach() for name, p in inner.named_parameters()}
    weights |= {name: b for name, b in inner.named_buffers() if name in inner.state_dict()}
    _load_tensors(accelerator, weights, folder, also_known=inner.state_dict().keys())


def load_optimizer(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    checkpoint: Path,
) -> None:
    """Restores the optimizer's state.

    Raises:
        UserError: It is of another optimizer.
    """
    inner = unwrap(accelerator, model)
    if is_deepspeed(accelerator):
        zero.create_state(model)
        put, shapes = partial(zero.put_state, inner, model), zero.state_shapes(inner, model)
        needed = zero.needed_state(inner, model)
        _load_whole(shapes, checkpoint / "optimizer", put, needed=needed)
        return
    prepare_optimizer_state(optimizer)
    tensors = optimizer_tensors(inner, optimizer)
    _load_tensors(accelerator, tensors, checkpoint / "optimizer")


def _load_tensors(
    accelerator: Accelerator,
    tensors: dict[str, Tensor],
    path: Path,
    also_known: Collection[str] = (),
) -> None:
    _check_tensors(tensors, path, also_known)
    state_dict_loader.load(
        tensors,
        storage_reader=HuggingFaceStorageReader(str(path)),
        no_dist=accelerator.num_processes == 1,
    )


def _load_whole(
    shapes: dict[str, Tensor],
    path: Path,
    put: Callable[[dict[str, Tensor]], None],
    *,
    needed: Collection[str] | None = None,
    also_known: Collection[str] = (),
) -> None:
    """Reads whole tensors on this rank alone, a batch at a time, and hands each batch on.

    Args:
        shapes: All that must be there.
        path: Where the files lie.
        put: Takes a batch, on the CPU.
        needed: Those to read; None reads all.
        also_known: Names that may be there as well.
    """
    _check_tensors(shapes, path, also_known)
    wanted = {name: shape for name, shape in shapes.items() if needed is None or name in needed}
    for names in _batches(wanted):
        batch = {name: torch.empty_like(wanted[name], device="cpu") for name in names}
        reader = HuggingFaceStorageReader(str(path))
        state_dict_loader.load(batch, storage_reader=reader, no_dist=True)
        put(batch)


def _batches(tensors: dict[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors of `BATCH_BYTES` together, or of a single larger one."""
    names, size = [], 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > BATCH_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names


def _check_tensors(tensors: dict[str, Tensor], path: Path, also_known: Collection[str]) -> None:
    """Compares names and shapes before anything is overwritten."""
    stored = {
        name: tuple(metadata.size)
        for name, metadata in HuggingFaceStorageReader(str(path))
        .read_metadata()
        .state_dict_metadata.items()
        if isinstance(metadata, TensorStorageMetadata)
    }
    missing = sorted(set(tensors) - set(stored))
    extra = sorted(set(stored) - set(tensors) - set(also_known))
    other = [
        f"{name}, {list(stored[name])} there and {list(tensor.shape)} here"
        for name, tensor in tensors.items()
        if name in stored and stored[name] != tuple(tensor.shape)
    ]
    if missing or extra or other:
        named = other or missing or extra
        raise UserError(
            f"these are of another model or optimizer: {len(missing)} tensors missing, "
            f"{len(extra)} not known, {len(other)} of another shape, such as {named[0]}",
            where=str(path),
            remedy="keep the model, tokenizer and optimizer of the run that made them, or start "
            "in another job.dump_folder without them",
        )


def optimizer_tensors(model: nn.Module, optimizer: AcceleratedOptimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<state>`: the tensors themselves, not copies."""
    states = optimizer.optimizer.state
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
    }


def prepare_optimizer_state(optimizer: AcceleratedOptimizer) -> None:
    """Makes the optimizer create its state, to be overwritten by a loaded one; no weight moves."""
    inner = optimizer.optimizer
    rates = [group["lr"] for group in inner.param_groups]
    for group in inner.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    inner.found_inf = None
    inner.step()
    inner.zero_grad()
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["lr"] = rate


def save_optimizer(
    accelerator: Accelerator, checkpoint: Path, model: nn.Module, optimizer: AcceleratedOptimizer
) -> None:
    """Writes the optimizer's state, every rank its shards."""
    if is_deepspeed(accelerator):
        tensors = zero.gather_state(accelerator, model)
    else:
        tensors = optimizer_tensors(unwrap(accelerator, model), optimizer)
    state_dict_saver.save(
        tensors,
        storage_writer=HuggingFaceStorageWriter(
            str(checkpoint / "optimizer"), save_distributed=True
        ),
        no_dist=accelerator.num_processes == 1,
    )
