"""Small programs that every rank of a launch runs, for tests of `parallel` and of its traps.

`python rank_programs.py NAME` runs the function of that name and fails if it raises.
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flame_accel.checkpoint.failed_loads import load_or_fail_on_all_ranks
from flame_accel.checkpoint.tensor_storage import load_weights
from flame_accel.config import CommConfig, Float8Config, TrainingConfig
from flame_accel.config.errors import exit_on_user_error
from flame_accel.parallel import (
    build_accelerator,
    clip_gradients_and_get_norm,
    describe_topology,
    explain_timeout_and_connection_errors,
    extended_timeout,
    prepare_transformed_model_and_optimizer,
    wait_and_set_train_timeout,
)
from flame_accel.parallel.checks import check_prepared_parameters
from flame_accel.training.spike_guard import SpikeGuard
from flame_accel.training.step import clip_and_update_or_finish_backward_update

SECONDS = 1


def build(**training: Any) -> Accelerator:
    """The Accelerator of a launch."""
    return build_accelerator(
        TrainingConfig(**training),
        CommConfig(train_timeout_seconds=SECONDS),
        run_folder=".",
    )


def build_llama(seed: int, *, device: str = "cpu") -> PreTrainedModel:
    """A Llama of two blocks."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 16}
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    with torch.device(device):
        return LlamaForCausalLM(config)


def prepare_llama(
    accelerator: Accelerator, model: PreTrainedModel
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """As a run prepares it."""
    optimizer = torch.optim.AdamW(model.parameters())
    return prepare_transformed_model_and_optimizer(
        accelerator, model, optimizer, TrainingConfig(), Float8Config()
    )


class Gradients(nn.Module):
    """Parameters that have gradients and do nothing else."""

    def __init__(self, gradients: list[Tensor]) -> None:
        super().__init__()
        for number, gradient in enumerate(gradients):
            parameter = nn.Parameter(gradient.detach().clone())
            parameter.grad = gradient
            self.register_parameter(str(number), parameter)


def mixed_gradients() -> None:
    """Gradients of all placements, and plain ones, have one norm together."""
    accelerator = build(data_parallel_shard_degree=2, tensor_parallel_degree=2)
    root = accelerator.torch_device_mesh
    meshes = {"both": root["dp_shard", "tp"], "data": root["dp_shard"], "tp": root["tp"]}
    layouts: list[tuple[str, list[Placement]]] = [
        ("both", [Shard(0), Shard(1)]),
        ("both", [Shard(0), Replicate()]),
        ("both", [Replicate(), Shard(1)]),
        ("data", [Shard(0)]),
        ("tp", [Shard(1)]),
        ("tp", [Replicate()]),
        # as of a replicated norm: each TP rank has a summand
        ("both", [Shard(0), Partial()]),
    ]
    generator = torch.Generator().manual_seed(0)
    # five rows do not divide evenly
    full_gradients = [torch.randn(5, 6, generator=generator) for _ in range(len(layouts) + 1)]
    gradients: list[Tensor] = []
    for full, (name, placements) in zip(full_gradients, layouts, strict=False):
        known = [Replicate() if where.is_partial() else where for where in placements]
        gradient = distribute_tensor(full.clone(), meshes[name], known)
        if placements != known:
            gradient = DTensor.from_local(
                gradient.to_local() / 2, meshes[name], placements, shape=(5, 6), stride=(6, 1)
            )
        gradients.append(gradient)
    # and one that is the same on every rank
    gradients.append(full_gradients[-1].clone())

    expected = torch.cat([full.flatten() for full in full_gradients]).norm()
    model = Gradients(gradients)
    assert_equal(clip_gradients_and_get_norm(accelerator, model, 0.0), expected)
    assert_equal(clip_gradients_and_get_norm(accelerator, model, 3.0), expected)
    for full, parameter in zip(full_gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        clipped = parameter.grad
        if isinstance(clipped, DTensor):
            clipped = clipped.full_tensor()
        assert_equal(clipped, full * 3 / expected)
    assert_equal(clip_gradients_and_get_norm(accelerator, model, 0.0), torch.tensor(3.0))


def poisoned_gradient() -> None:
    """A gradient that is not finite in one place of one rank leaves all weights of all ranks."""
    accelerator = build()
    model, optimizer = prepare_llama(accelerator, build_llama(0))
    ids = torch.arange(8)[None] % 16

    def step(poison: bool) -> tuple[bool, list[bool]]:
        parameters = list(model.parameters())
        before = [_local(parameter).clone() for parameter in parameters]
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        for index, parameter in enumerate(parameters):
            assert parameter.grad is not None
            gradient = _local(parameter.grad)
            if poison and index == 0 and accelerator.process_index == 1:
                gradient.view(-1)[0] = torch.nan
        result = clip_and_update_or_finish_backward_update(
            accelerator, model, optimizer, max_norm=1.0, skip_non_finite=True
        )
        same = [torch.equal(old, _local(new)) for old, new in zip(before, parameters, strict=True)]
        return bool(result.skipped.item()), same

    skipped, same = step(poison=False)
    assert not skipped and not any(same)
    skipped, same = step(poison=True)
    assert skipped and all(same)


def spikes() -> None:
    """The guard against spikes gets other values on each rank; prints what it decides and keeps."""
    accelerator = build()
    guard = SpikeGuard(accelerator, sigma=4.0, window=8)
    rank, zero = accelerator.process_index, torch.zeros(())
    decisions = []
    for loss in (3.0, 3.1, 3.0, 3.1, 9.0, 3.1):
        # one rank has the spike, the other a norm that is not its own to the last bit
        loss_sum = torch.tensor(10 * loss if rank else 30.0)
        norm = torch.tensor(1.0 + 1e-7 * rank)
        decisions.append(int(guard.decide_and_remember(loss_sum, 20, norm, zero).skipped))
    # in one piece: ranks print at the same time
    print(f"guard of rank {rank}: {decisions} {guard.accepted_values()}\n", end="", flush=True)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def assert_equal(given: Tensor, expected: Tensor) -> None:
    """Equality up to the order of sums, of plain tensors."""
    assert type(given) is Tensor
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)


def different_weights() -> None:
    """Every rank draws its own initial weights."""
    accelerator = build()
    prepare_llama(accelerator, build_llama(accelerator.process_index))


def different_replicas() -> None:
    """As if an engine had made different copies of the same weights."""
    accelerator = build()
    model, optimizer = prepare_llama(accelerator, build_llama(0))
    with torch.no_grad():
        weight = model.get_parameter("model.norm.weight")
        assert isinstance(weight, DTensor)
        weight.to_local().add_(accelerator.torch_device_mesh["dp_replicate"].get_local_rank())
    check_prepared_parameters(accelerator, model, optimizer)


def model_without_storage() -> None:
    """A model on the meta device, which Accelerate accepts silently."""
    prepare_llama(build(), build_llama(0, device="meta"))


def lost_parameter() -> None:
    """An optimizer without the first parameter of its model."""
    accelerator, model = build(), build_llama(0)
    optimizer = torch.optim.AdamW(list(model.parameters())[1:])
    prepare_transformed_model_and_optimizer(
        accelerator, model, optimizer, TrainingConfig(), Float8Config()
    )


def failed_read_of_weights() -> None:
    """A file of weights in the folder RUN that cannot be read on the last rank, and then can."""
    # torch imports it where it opens a file
    accelerator, folder, safe_open = build(), Path(os.environ["RUN"]), safetensors.safe_open
    source, reads = build_llama(1), 0
    if accelerator.is_main_process:
        source.save_pretrained(folder)
    model, _ = prepare_llama(accelerator, build_llama(0))
    accelerator.wait_for_everyone()

    def fail_first(filename: str, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 1 and accelerator.is_last_process:
            raise OSError(errno.EIO, os.strerror(errno.EIO), filename)
        return safe_open(filename, **options)

    with mock.patch.object(safetensors, "safe_open", fail_first):
        load_or_fail_on_all_ranks(
            folder, "the weights", lambda: load_weights(accelerator, model, folder)
        )
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(parameter.full_tensor(), source.get_parameter(name)), name
    assert reads > 1


def describe() -> None:
    """Prints what a prepared model runs on."""
    accelerator = build(enable_cpu_offload="offload" in sys.argv)
    prepare_llama(accelerator, build_llama(0))
    if accelerator.is_main_process:
        print(describe_topology(accelerator))


def late_rank() -> None:
    """The last rank is late for an all-reduce of replicas; prints how long the other waits."""
    accelerator = build()
    wait_and_set_train_timeout(accelerator, CommConfig(train_timeout_seconds=SECONDS))
    wait_for_last(accelerator)


def slow_files() -> None:
    """As `late_rank`, after the last rank has been busy with files for longer than the timeout."""
    accelerator = build()
    comm = CommConfig(train_timeout_seconds=SECONDS)
    wait_and_set_train_timeout(accelerator, comm)
    with extended_timeout(accelerator, comm.train_timeout_seconds):
        if accelerator.is_last_process:
            time.sleep(1.5 * SECONDS)
        accelerator.wait_for_everyone()
    wait_for_last(accelerator)


def wait_for_last(accelerator: Accelerator) -> None:
    """An all-reduce of the replicas for which the last rank is far too late."""
    group = accelerator.torch_device_mesh["dp_replicate"].get_group()
    started_at = time.monotonic()
    try:
        with explain_timeout_and_connection_errors(CommConfig(train_timeout_seconds=SECONDS)):
            if accelerator.is_last_process:
                time.sleep(8 * SECONDS)
            torch.distributed.all_reduce(torch.ones(1), group=group)
    finally:
        print(f"rank {accelerator.process_index} waited {time.monotonic() - started_at:.1f} s")


if __name__ == "__main__":
    with exit_on_user_error():
        globals()[sys.argv[1]]()
