"""The contents of a checkpoint: everything a run needs to go on with the same bits.

    step-N/
      config.json, model*.safetensors, tokenizer    a Hugging Face model with the fp32 weights
      optimizer/*.safetensors                       `<parameter>.<state>`, sharded as in memory
      state.json                                    step, tokens, tracker ids
      data.json                                     cursors of all lanes, whatever the world size
      rank-R.json                                   random states, open measurements of a rank

Reading and writing of shards goes through torch.distributed.checkpoint's Hugging Face storage, so
that a checkpoint loads into any engine and world size, and nothing is unpickled. How a folder
becomes complete is in `folder`.
"""

import base64
import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import PreTrainedTokenizerBase

from flame_accel.checkpoint.folder import CheckpointFolder
from flame_accel.checkpoint.hf import gather_weights, save_hf_model
from flame_accel.config import UserError
from flame_accel.data import merge_states
from flame_accel.observe import get_logger
from flame_accel.observe.run_folder import package_versions
from flame_accel.parallel import unwrap


@dataclass(kw_only=True, slots=True)
class RunState:
    """The counters of a run."""

    step: int = 0
    """Completed updates."""
    tokens: int = 0
    """Tokens that those updates read, on all ranks."""
    tracker_ids: dict[str, str] = field(default_factory=dict)
    """Ids under which the trackers know the run."""


def save_checkpoint(
    accelerator: Accelerator,
    folder: CheckpointFolder,
    state: RunState,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    tokenizer: PreTrainedTokenizerBase,
    data_state: dict[str, Any],
    rank_state: dict[str, Any],
) -> Path:
    """Writes the checkpoint of `state.step`. Every rank must call it; returns when it is complete.

    Args:
        accelerator: Of the run.
        folder: Of the run's checkpoints.
        state: Counters.
        model: Prepared.
        optimizer: Prepared.
        tokenizer: Saved beside the weights.
        data_state: Cursors of this rank's lanes.
        rank_state: What this rank alone knows, JSON-able.
    """
    weights = gather_weights(accelerator, model)
    data_states = gather_object([data_state])
    if accelerator.is_main_process:
        temporary = folder.begin(state.step)
        inner = unwrap(accelerator, model)
        save_hf_model(inner, weights, tokenizer, temporary, torch.float32)
        _write_json(temporary / "state.json", asdict(state))
        _write_json(temporary / "data.json", merge_states(data_states))
    accelerator.wait_for_everyone()
    temporary = folder.temporary(state.step)
    state_dict_saver.save(
        optimizer_tensors(unwrap(accelerator, model), optimizer),
        storage_writer=HuggingFaceStorageWriter(
            str(temporary / "optimizer"), save_distributed=True
        ),
        no_dist=accelerator.num_processes == 1,
    )
    rank = accelerator.process_index
    _write_json(temporary / f"rank-{rank}.json", {**rank_state, "random": random_state()})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.commit(
            state.step,
            {
                "step": state.step,
                "tokens": state.tokens,
                "processes": accelerator.num_processes,
                "versions": package_versions(),
            },
        )
    accelerator.wait_for_everyone()
    return folder.final(state.step)


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
) -> tuple[RunState, dict[str, Any], dict[str, Any]]:
    """Restores model, optimizer and random states. Every rank must call it.

    Returns:
        The counters, the cursors of all lanes, and what this rank saved of its own (empty for a
        rank that was not there).

    Raises:
        UserError: The checkpoint is of another model or optimizer.
    """
    inner = unwrap(accelerator, model)
    no_dist = accelerator.num_processes == 1
    prepare_optimizer_state(optimizer)
    # tied weights are stored once, and loading them once fills all
    weights: dict[str, Tensor] = {name: p.detach() for name, p in inner.named_parameters()}
    weights |= {name: b for name, b in inner.named_buffers() if name in inner.state_dict()}
    for tensors, path in (
        (weights, checkpoint),
        (optimizer_tensors(inner, optimizer), checkpoint / "optimizer"),
    ):
        _check_tensors(tensors, path)
        state_dict_loader.load(
            tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=no_dist
        )
    state = RunState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    data_state = json.loads((checkpoint / "data.json").read_text(encoding="utf-8"))
    return state, data_state, _load_rank(accelerator, checkpoint)


def _check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Compares names and shapes before anything is overwritten."""
    stored = {
        name: tuple(metadata.size)
        for name, metadata in HuggingFaceStorageReader(str(path))
        .read_metadata()
        .state_dict_metadata.items()
        if isinstance(metadata, TensorStorageMetadata)
    }
    missing = sorted(set(tensors) - set(stored))
    extra = sorted(set(stored) - set(tensors))
    other = [
        name for name in tensors if name in stored and stored[name] != tuple(tensors[name].shape)
    ]
    if missing or extra or other:
        named = missing or extra or other
        raise UserError(
            f"the checkpoint is of another model or optimizer: {len(missing)} tensors missing, "
            f"{len(extra)} not known, {len(other)} of another shape, such as {named[0]}",
            where=str(path),
            remedy="resume with the model and optimizer of the run, or use another job.dump_folder",
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


def random_state() -> dict[str, Any]:
    """The states of this process's random generators, JSON-able."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _encode(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts the generators where `random_state` found them."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(numbers, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decode(state["torch"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def _load_rank(accelerator: Accelerator, checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / f"rank-{accelerator.process_index}.json"
    if not path.exists():
        get_logger().warning(
            "rank %d was not part of the run that saved %s: it keeps its fresh random states",
            accelerator.process_index,
            checkpoint,
        )
        return {}
    rank_state = json.loads(path.read_text(encoding="utf-8"))
    restore_random_state(rank_state.pop("random"))
    return rank_state


def _encode(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
