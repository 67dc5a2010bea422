"""The forward and backward pass of a micro-batch as a CUDA graph, replayed with other documents.

A replay costs the host one launch instead of thousands. A graph works on the same tensors each
time: a micro-batch is copied into them, and gradients are added up in place. Boundaries of
documents are padded with empty documents to a power of two, and each such number has a graph of its
own; all share one pool of memory. The optimizer runs as ever, while the device is busy with the
last pass.

The first pass of a kind runs without a graph, on the same padded tensors, so that kernels are
compiled and a resumed run computes the same bits as one that went on.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flame_accel.kernels.document_boundaries import view_padded_boundaries

logger = logging.getLogger(__name__)

FEWEST_DOCUMENTS = 16
"""Documents to which smaller numbers are padded."""


class _Kind(NamedTuple):
    """What the graphs differ by."""

    shape: tuple[int, ...]
    documents: int
    """Padded; 0 for rows without boundaries."""


class CapturedPass(NamedTuple):
    """A captured computation."""

    replay: Callable[[], None]
    """Does it again, on the same tensors."""
    result: Tensor
    """Written by each replay."""
    pool: Any
    """The memory of what lies between, which other graphs may share."""


def capture_cuda_graph(compute: Callable[[], Tensor], pool: Any) -> CapturedPass:
    """Captures a computation without doing it.

    Args:
        compute: Has run before, so that nothing is compiled or tuned now.
        pool: Of another graph; None for a new one.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = compute()
    return CapturedPass(graph.replay, result, graph.pool())


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
        capture: As `capture_cuda_graph`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        compute_loss: LossFunction,
        *,
        longest_document: int,
        scale: int,
        capture: Callable[[Callable[[], Tensor], Any], CapturedPass] = capture_cuda_graph,
    ) -> None:
        self.capture = capture
        self.accelerator = accelerator
        self.compute_loss = compute_loss
        self.scale = scale
        self.longest_document = longest_document
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._graphs: dict[_Kind, CapturedPass] = {}
        self._inputs: dict[_Kind, dict[str, Tensor]] = {}
        self._refused = False

    def run(self, batch: Mapping[str, Any], global_targets: int | Tensor) -> Tensor:
        """Adds the gradients of a micro-batch to the parameters', and returns its loss, detached.

        The loss is overwritten by the next pass.

        Args:
            batch: On the device, with `num_targets` in addition to the model's inputs.
            global_targets: Number of target tokens of the step.
        """
        kind = _kind_of(batch)
        first = kind not in self._inputs
        if first:
            self._inputs[kind] = self._allocate(kind, batch)
        inputs = self._inputs[kind]
        _copy_into(inputs, batch, global_targets)
        if first:
            self._allocate_gradients()
            return self._differentiate(inputs)
        if kind not in self._graphs and not self._refused:
            self._capture_if_possible(kind)
        if kind not in self._graphs:
            return self._differentiate(inputs)
        self._graphs[kind].replay()
        return self._graphs[kind].result

    def _capture_if_possible(self, kind: _Kind) -> None:
        """Captures the pass of a kind; where that fails, no other is tried."""
        pool = next((captured.pool for captured in self._graphs.values()), None)
        try:
            self._graphs[kind] = self.capture(
                partial(self._differentiate, self._inputs[kind]), pool
            )
        # capturing does nothing to the gradients; too little memory is one of these
        except RuntimeError as error:
            self._refused = True
            logger.warning(
                "passes run without CUDA graphs (training.cuda_graphs): %s",
                str(error).splitlines()[0],
            )

    def _allocate(self, kind: _Kind, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        inputs = {
            name: torch.empty_like(value)
            for name, value in batch.items()
            if isinstance(value, Tensor) and name != "cu_seqlens"
        }
        device = self.accelerator.device
        if kind.documents:
            inputs["cu_seqlens"] = torch.empty(
                kind.documents + 1, dtype=batch["cu_seqlens"].dtype, device=device
            )
        inputs["targets"] = torch.empty((), dtype=torch.int64, device=device)
        return inputs

    def _allocate_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _differentiate(self, inputs: dict[str, Tensor]) -> Tensor:
        batch = {name: value for name, value in inputs.items() if name != "targets"}
        if "cu_seqlens" in batch:
            tokens = inputs["input_ids"].numel()
            batch["cu_seqlens"] = view_padded_boundaries(
                inputs["cu_seqlens"], tokens=tokens, longest=min(tokens, self.longest_document)
            )
        loss = self.compute_loss(batch, inputs["targets"])
        self.accelerator.backward(loss * self.scale)
        return loss.detach()


def _kind_of(batch: Mapping[str, Any]) -> _Kind:
    documents = 0
    if "cu_seqlens" in batch:
        # one more than there are, which stays empty
        documents = max(FEWEST_DOCUMENTS, 1 << (len(batch["cu_seqlens"]) - 1).bit_length())
    return _Kind(tuple(batch["input_ids"].shape), documents)


def _copy_into(
    inputs: Mapping[str, Tensor], batch: Mapping[str, Any], global_targets: int | Tensor
) -> None:
    """Fills the tensors of a graph; nothing waits."""
    for name, tensor in inputs.items():
        if name == "targets":
            # a number is filled in on the device
            _ = tensor.fill_(global_targets)
        elif name == "cu_seqlens":
            boundaries = batch[name]
            tensor[: len(boundaries)].copy_(boundaries)
            tensor[len(boundaries) :].fill_(batch["input_ids"].numel())
        else:
            tensor.copy_(batch[name])
