"""The forward and backward pass of a micro-batch as a CUDA graph, replayed with other documents.

A replay costs the host one launch instead of thousands. A graph works on the same tensors each
time: a micro-batch is copied into them, and gradients are added up in place. Boundaries of
documents are padded with empty documents to a power of two, and each such number has a graph of its
own; all share one pool of memory. The optimizer runs as ever, while the device is busy with the
last pass.

The first pass of a kind runs without a graph, on the same padded tensors: kernels are compiled
then, and a pass computes what its replay does.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from flame_accel.config import Config, UserError
from flame_accel.kernels import triton_has_device
from flame_accel.kernels.boundaries_on_host import view_padded_boundaries
from flame_accel.parallel import is_deepspeed
from flame_accel.training.loss import (
    accepts_num_items_in_batch,
    compute_unscaled_nats_over_global_targets,
)
from flame_accel.training.optimizer_in_backward import OptimizerInBackward

log = logging.getLogger("flame_accel")

GRAPHED_MODELS = (
    "delta_net", "gated_deltanet", "gla", "kda", "mamba2", "rwkv7", "transformer",
)  # fmt: skip
"""Model types whose passes are graphs unless switched off: those that were measured."""
FEWEST_DOCUMENTS = 16
"""Documents to which smaller numbers are padded."""


MemoryPool = torch.cuda._POOL_HANDLE
"""A pool of device memory that graphs may share."""


class _GraphKey(NamedTuple):
    """What the graphs differ by."""

    shape: tuple[int, ...]
    padded_documents: int
    """Padded; 0 for rows without boundaries."""


class CapturedPass(NamedTuple):
    """A captured computation."""

    replay: Callable[[], None]
    """Does it again, on the same tensors."""
    loss: Tensor
    """Written by each replay."""
    memory_pool: MemoryPool
    """The memory of what lies between, which other graphs may share."""


def capture_cuda_graph_without_running(
    compute_loss: Callable[[], Tensor], memory_pool: MemoryPool | None
) -> CapturedPass:
    """Captures a computation without doing it.

    Args:
        compute_loss: Has run before, so that nothing is compiled or tuned now.
        memory_pool: Of another graph; None for a new one.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory_pool):
        loss = compute_loss()
    return CapturedPass(graph.replay, loss, graph.pool())


LossFunction = Callable[[Mapping[str, Any], Tensor], Tensor]
"""From a micro-batch and the number of targets of the step to the loss, 0-dimensional."""


class PassGraphs:
    """Runs passes of micro-batches, as graphs from the second of a kind on.

    Args:
        accelerator: The run's Accelerator, of one process.
        model: The prepared model, whose gradients stay allocated from now on.
        compute_loss: Of a micro-batch on the device.
        longest_document: No document has more tokens.
        scale: Losses are multiplied by it to be differentiated.
        capture: As `capture_cuda_graph_without_running`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        compute_loss: LossFunction,
        *,
        longest_document: int,
        scale: int,
        capture: Callable[
            [Callable[[], Tensor], MemoryPool | None], CapturedPass
        ] = capture_cuda_graph_without_running,
    ) -> None:
        self.capture = capture
        self.accelerator = accelerator
        self.compute_loss = compute_loss
        self.scale = scale
        self.longest_document = longest_document
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._graphs: dict[_GraphKey, CapturedPass] = {}
        self._inputs: dict[_GraphKey, dict[str, Tensor]] = {}
        self._gave_up = False

    def add_gradients_and_get_loss(
        self, batch: Mapping[str, Any], global_targets: int | Tensor
    ) -> Tensor:
        """Adds the gradients of a micro-batch to the parameters', and returns its loss, detached.

        The loss is overwritten by the next pass.

        Args:
            batch: On the device, with `num_targets` in addition to the model's inputs.
            global_targets: Number of target tokens of the step.
        """
        key = _key_by_input_shape_and_padded_documents(batch)
        first = key not in self._inputs
        if first:
            self._inputs[key] = self._allocate_unfilled_static_inputs(key, batch)
        inputs = self._inputs[key]
        _fill_static_inputs_and_pad_boundaries(inputs, batch, global_targets)
        if first:
            self._allocate_missing_gradients()
            return self._compute_loss_and_add_gradients(inputs)
        if key not in self._graphs and not self._gave_up:
            self._capture_or_give_up_graphs(key)
        if key not in self._graphs:
            return self._compute_loss_and_add_gradients(inputs)
        self._graphs[key].replay()
        return self._graphs[key].loss

    def _capture_or_give_up_graphs(self, key: _GraphKey) -> None:
        """Captures the pass of a kind; where that fails, no other is tried."""
        pool = next((captured.memory_pool for captured in self._graphs.values()), None)
        try:
            self._graphs[key] = self.capture(
                partial(self._compute_loss_and_add_gradients, self._inputs[key]), pool
            )
        # capturing does nothing to the gradients; too little memory is one of these
        except RuntimeError as error:
            self._gave_up = True
            log.warning(
                "passes run without CUDA graphs (training.cuda_graphs): %s",
                str(error).splitlines()[0],
            )

    def _allocate_unfilled_static_inputs(
        self, key: _GraphKey, batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        inputs = {
            name: torch.empty_like(value)
            for name, value in batch.items()
            if isinstance(value, Tensor) and name != "cu_seqlens"
        }
        device = self.accelerator.device
        if key.padded_documents:
            inputs["cu_seqlens"] = torch.empty(
                key.padded_documents + 1, dtype=batch["cu_seqlens"].dtype, device=device
            )
        inputs["targets"] = torch.empty((), dtype=torch.int64, device=device)
        return inputs

    def _allocate_missing_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _compute_loss_and_add_gradients(self, static_inputs: dict[str, Tensor]) -> Tensor:
        batch = {name: value for name, value in static_inputs.items() if name != "targets"}
        if "cu_seqlens" in batch:
            tokens = static_inputs["input_ids"].numel()
            batch["cu_seqlens"] = view_padded_boundaries(
                static_inputs["cu_seqlens"],
                tokens=tokens,
                longest=min(tokens, self.longest_document),
            )
        loss = self.compute_loss(batch, static_inputs["targets"])
        self.accelerator.backward(loss * self.scale)
        return loss.detach()


def _key_by_input_shape_and_padded_documents(batch: Mapping[str, Any]) -> _GraphKey:
    documents = 0
    if "cu_seqlens" in batch:
        # one more than there are, which stays empty
        documents = max(FEWEST_DOCUMENTS, 1 << (len(batch["cu_seqlens"]) - 1).bit_length())
    return _GraphKey(tuple(batch["input_ids"].shape), documents)


def _fill_static_inputs_and_pad_boundaries(
    static_inputs: Mapping[str, Tensor], batch: Mapping[str, Any], global_targets: int | Tensor
) -> None:
    """Fills the tensors of a graph; nothing waits."""
    for name, tensor in static_inputs.items():
        if name == "targets":
            # a number is filled in on the device
            _ = tensor.fill_(global_targets)
        elif name == "cu_seqlens":
            boundaries = batch[name]
            tensor[: len(boundaries)].copy_(boundaries)
            tensor[len(boundaries) :].fill_(batch["input_ids"].numel())
        else:
            tensor.copy_(batch[name])


def build_pass_graphs(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    config: Config,
) -> PassGraphs | None:
    """What runs the passes of a run as CUDA graphs, which is logged; None if they are not used.

    Args:
        accelerator: The run's Accelerator.
        model: The prepared model.
        optimizer: The prepared optimizer.
        config: Whether graphs are asked for, and what may be in their way.

    Raises:
        UserError: They are asked for, and this run cannot have them.
    """
    training, asked = config.training, config.training.cuda_graphs
    if asked == "never":
        return None
    reason = _find_reason_against_graphs(accelerator, model, optimizer, config)
    if reason is not None and asked == "always":
        raise UserError(reason, where="training.cuda_graphs", remedy="remove the option")
    untried = training.compile or config.float8.recipe_name is not None
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if reason is not None or (asked == "auto" and (untried or model_type not in GRAPHED_MODELS)):
        return None
    log.info("forward and backward passes: CUDA graphs")
    return PassGraphs(
        accelerator,
        model,
        partial(compute_unscaled_nats_over_global_targets, accelerator, model),
        longest_document=training.context_len or training.seq_len,
        scale=training.gradient_accumulation_steps,
    )


def _find_reason_against_graphs(
    accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer, config: Config
) -> str | None:
    if accelerator.device.type != "cuda" or not triton_has_device():
        return "graphs need a CUDA device and Triton"
    if accelerator.num_processes > 1 or accelerator.is_fsdp2 or is_deepspeed(accelerator):
        return "passes are graphs on one GPU only"
    if config.activation_checkpoint.mode != "none":
        return "activation checkpointing reads the state of random numbers, which a graph cannot"
    if isinstance(optimizer.optimizer, OptimizerInBackward):
        return "the optimizer steps within the backward pass, with another learning rate each time"
    if not accepts_num_items_in_batch(type(model)):
        return f"{type(model).__name__} does not divide its loss by num_items_in_batch"
    return None
