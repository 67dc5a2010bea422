"""Loads the weights and the optimizer state of a checkpoint in safetensors.

Shards are read by torch.distributed.checkpoint's Hugging Face storage, so that a checkpoint loads
into any engine and world size, and nothing is unpickled. Weights are written in `hf_model`, in the
layout that `from_pretrained` reads, the optimizer's state in `optimizer_shards`; DeepSpeed's
partitions are assembled and split in `deepspeed_zero`. Weights under other names than the model's
are read in `weight_conversion`.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from flame_accel.checkpoint import deepspeed_zero as zero
from flame_accel.checkpoint.failed_loads import read_or_raise_on_all_ranks
from flame_accel.checkpoint.weight_conversion import (
    load_converted_weights,
    needs_conversion_by_transformers,
)
from flame_accel.config import UserError
from flame_accel.parallel import is_deepspeed, unwrap_model

BATCH_BYTES = 1 << 30
"""Limit in bytes of the full tensors that a rank reads at a time."""


def load_weights(accelerator: Accelerator, model: nn.Module, folder: Path) -> None:
    """Overwrites a prepared model's weights from a Hugging Face model folder. Every rank calls it.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it.
        folder: Folder with safetensors, in any floating-point dtype.

    Raises:
        UserError: The folder contains another model.
    """
    inner = unwrap_model(accelerator, model)
    if needs_conversion_by_transformers(inner, _read_stored_tensor_shapes(folder)):
        load_converted_weights(accelerator, inner, folder)
        if is_deepspeed(accelerator):
            zero.refresh_fp32_copies(model)
        return
    if is_deepspeed(accelerator):
        _load_full_tensors_in_batches(
            zero.full_weights_on_meta(inner),
            folder,
            partial(zero.copy_into_zero_bit16_weights, inner),
            allowed_extra_names=inner.state_dict().keys(),
        )
        zero.refresh_fp32_copies(model)
        return
    # tied weights are stored once, and loading them once fills all
    weights: dict[str, Tensor] = {name: p.detach() for name, p in inner.named_parameters()}
    weights |= zero.persistent_buffers(inner)
    _load_tensors_in_place(
        accelerator, weights, folder, allowed_extra_names=inner.state_dict().keys()
    )


def load_optimizer_state(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    checkpoint: Path,
) -> None:
    """Overwrites the optimizer's state from a checkpoint. Every rank must call it.

    Raises:
        UserError: The checkpoint belongs to another model or optimizer.
    """
    inner = unwrap_model(accelerator, model)
    if is_deepspeed(accelerator):
        zero.initialize_zero_optimizer_state(model)
        _load_full_tensors_in_batches(
            zero.full_optimizer_state_on_meta(inner, model),
            checkpoint / "optimizer",
            partial(zero.copy_into_local_optimizer_state, inner, model),
            names_to_read=zero.local_optimizer_state_names(inner, model),
        )
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(parameter not in optimizer.optimizer.state for parameter in parameters):
        initialize_optimizer_state(optimizer)
    tensors = named_optimizer_state(inner, optimizer)
    _load_tensors_in_place(accelerator, tensors, checkpoint / "optimizer")


def _load_tensors_in_place(
    accelerator: Accelerator,
    tensors: dict[str, Tensor],
    path: Path,
    allowed_extra_names: Collection[str] = (),
) -> None:
    _check_stored_names_and_shapes(tensors, path, allowed_extra_names)
    state_dict_loader.load(
        tensors,
        storage_reader=HuggingFaceStorageReader(str(path)),
        no_dist=accelerator.num_processes == 1,
    )


def _load_full_tensors_in_batches(
    meta_tensors: dict[str, Tensor],
    path: Path,
    copy_batch: Callable[[dict[str, Tensor]], None],
    *,
    names_to_read: Collection[str] | None = None,
    allowed_extra_names: Collection[str] = (),
) -> None:
    """Reads full tensors on this rank alone, in batches of at most `BATCH_BYTES`.

    Args:
        meta_tensors: Names and shapes that must be stored, on the meta device.
        path: Folder with safetensors.
        copy_batch: Called with each batch: full tensors by name, on the CPU.
        names_to_read: Names of the tensors to read, and `copy_batch` is no collective; None reads
            all, and it may be one.
        allowed_extra_names: Names that may be stored as well.
    """
    _check_stored_names_and_shapes(meta_tensors, path, allowed_extra_names)
    wanted = {
        name: tensor
        for name, tensor in meta_tensors.items()
        if names_to_read is None or name in names_to_read
    }
    for names in _batch_names_by_bytes(wanted):
        batch = {name: torch.empty_like(wanted[name], device="cpu") for name in names}
        read = partial(
            state_dict_loader.load,
            batch,
            storage_reader=HuggingFaceStorageReader(str(path)),
            no_dist=True,
        )
        if names_to_read is None:
            # the batches of all ranks are the same, and copying them is a collective
            read_or_raise_on_all_ranks(read)
        else:
            read()
        copy_batch(batch)


def _batch_names_by_bytes(tensors: dict[str, Tensor]) -> Iterator[list[str]]:
    """Names of consecutive tensors with at most `BATCH_BYTES` together, or of one larger tensor."""
    names, size = [], 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > BATCH_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names


def _read_stored_tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """Name and shape of every stored tensor. Every rank must call it."""
    reader = HuggingFaceStorageReader(str(path))
    stored = read_or_raise_on_all_ranks(lambda: reader.read_metadata().state_dict_metadata)
    return {
        name: metadata.size
        for name, metadata in stored.items()
        if isinstance(metadata, TensorStorageMetadata)
    }


def _check_stored_names_and_shapes(
    expected: dict[str, Tensor], path: Path, allowed_extra_names: Collection[str]
) -> None:
    """Compares names and shapes with those stored, before anything is overwritten.

    Every rank must call it.
    """
    stored = _read_stored_tensor_shapes(path)
    missing = sorted(set(expected) - set(stored))
    extra = sorted(set(stored) - set(expected) - set(allowed_extra_names))
    other = [
        f"{name}, {list(stored[name])} there and {list(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in stored and stored[name] != tensor.shape
    ]
    if missing or extra or other:
        named = other or missing or extra
        raise UserError(
            f"belongs to another model or optimizer: {len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(other)} of another shape, such as {named[0]}",
            where=str(path),
            remedy="use the model, tokenizer and optimizer of the run that saved it, or start "
            "without it in another job.dump_folder",
        )


def named_optimizer_state(model: nn.Module, optimizer: AcceleratedOptimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<state>`: the tensors themselves, not copies."""
    states = optimizer.optimizer.state
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
    }


def optimizer_state_bytes(
    accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer
) -> int:
    """Bytes of the optimizer's state on all ranks, as it is stored."""
    inner = unwrap_model(accelerator, model)
    if is_deepspeed(accelerator):
        tensors = zero.full_optimizer_state_on_meta(inner, model)
    else:
        tensors = named_optimizer_state(inner, optimizer)
    # of a sharded tensor the elements of the whole
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def initialize_optimizer_state(optimizer: AcceleratedOptimizer) -> None:
    """Makes the optimizer create its state, so that it can be overwritten; no weight changes."""
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
