"""The optimizer's state in a checkpoint: each rank writes its shards as one safetensors file.

torch.distributed.checkpoint decides which rank writes what, and reads the files (`tensor_storage`);
they are written here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from flame_accel.checkpoint import deepspeed_zero as zero
from flame_accel.checkpoint.tensor_storage import named_optimizer_state
from flame_accel.parallel import is_deepspeed, unwrap_model


class OptimizerShard(NamedTuple):
    """The part of an optimizer's state that this rank writes, as one file."""

    file_name: str
    tensors: dict[str, Tensor]
    """`<parameter>.<state>`: this rank's elements."""
    metadata: dict[str, str]
    """Of the file: where the elements are in the whole tensors."""


def copy_optimizer_shard_of_rank(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    *,
    to_cpu: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> OptimizerShard | None:
    """The part of the optimizer's state that this rank writes. Every rank must call it.

    Ranks share what all of them hold.

    Args:
        accelerator: The run's accelerator.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer as Accelerate prepared it.
        to_cpu: As of `gather_full_weights_to_main`.

    Returns:
        None if other ranks write everything.
    """
    deepspeed = is_deepspeed(accelerator)
    if deepspeed:
        tensors = zero.gather_zero_optimizer_state_per_owner(accelerator, model, to_cpu=to_cpu)
    else:
        tensors = named_optimizer_state(unwrap_model(accelerator, model), optimizer)
    planner = _ShardPlanner()
    state_dict_saver.save(tensors, storage_writer=planner, no_dist=accelerator.num_processes == 1)
    if planner.shard is None or deepspeed:
        return planner.shard
    return planner.shard._replace(
        tensors={name: to_cpu(tensor) for name, tensor in planner.shard.tensors.items()}
    )


def write_optimizer_shard(shard: OptimizerShard, folder: Path) -> None:
    """Writes a rank's part of the optimizer's state, on the CPU, into a folder; no collective."""
    folder.mkdir(exist_ok=True)
    # not torch's writer: it holds Python's lock while it copies a whole file, and calls the device
    save_file(
        {name: tensor.contiguous() for name, tensor in shard.tensors.items()},
        folder / shard.file_name,
        shard.metadata,
    )


class _ShardPlanner(HuggingFaceStorageWriter):
    """Takes down what torch.distributed.checkpoint would write on this rank; writes nothing."""

    def __init__(self) -> None:
        super().__init__("", save_distributed=True)
        self.shard: OptimizerShard | None = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if plan.items:
            offsets = {
                item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)}
                for item in plan.items
                if item.tensor_data is not None
            }
            # a single key of metadata: several would be in another order in each process
            self.shard = OptimizerShard(
                f"shard-{plan.storage_data['shard_index']:05}-model-00001-of-00001.safetensors",
                {item.index.fqn: _resolve_tensor(planner, item) for item in plan.items},
                {"DCP_SHARDING_INFO": json.dumps(offsets)},
            )
        written: Future[list[WriteResult]] = Future()
        written.set_result([])
        return written


def _resolve_tensor(planner: SavePlanner, item: WriteItem) -> Tensor:
    """This rank's elements of a tensor, on its device."""
    data = planner.resolve_data(item)
    assert isinstance(data, Tensor)
    return data.detach()
