"""A training pass on tensors that have sizes and no memory: what a real one would hold.

torch's `FakeTensorMode` runs the very code of the model, forward and backward, and computes
nothing; kernels are not launched. Every storage that appears is counted until it is freed, so that
the peak is that of the run: no figure is fitted to a model. Real passes are compared with it in
docs/dry_run.md. What a device holds besides is added in `memory`.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from flame_accel import kernels
from flame_accel.config import ActivationCheckpointConfig, ModelConfig
from flame_accel.kernels.boundaries_on_host import remember_boundaries
from flame_accel.kernels.fused.replace import fused_kernels_disabled
from flame_accel.kernels.install import _active
from flame_accel.parallel.activations import checkpoint_activations
from flame_accel.parallel.residual_stream import cast_embeddings_under_autocast
from flame_accel.training.loss import accepts_num_items_in_batch

FUSED = "flame_accel.kernels.fused"


@dataclass(frozen=True, kw_only=True, slots=True)
class PassOptions:
    """How a run computes its passes."""

    seq_len: int
    """Tokens of a row."""
    document_tokens: int | None
    """Tokens of a document where documents are kept apart (`training.varlen`), else None."""
    bf16: bool
    """Whether passes run under bf16 autocast."""
    bf16_stream: bool
    """Whether the residual stream is bf16 then."""
    keeps_gradients: bool
    """Whether gradients stay allocated from step to step, as with CUDA graphs and DDP."""
    gpu_memory_bytes: int
    """Of the device, for operators that keep more where there is room."""


class PassMemory(NamedTuple):
    """Bytes that a forward and backward pass holds, without optimizer states."""

    weights: int
    gradients: int
    """Of all trainable weights."""
    kept: int
    """Saved by the forward pass for the backward pass; bf16 copies of weights are part of it."""
    loss: int
    """Largest sum above that while head and loss are computed."""
    peak: int
    """Largest sum of all that is alive at a time, weights and gradients included."""


class _StorageTracker(TorchDispatchMode):
    """Counts the bytes of all storages that operators return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive_bytes = self.peak_bytes = 0
        self._alive: dict[int, ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def subtract(_: object) -> None:
            del self._alive[key]
            self.alive_bytes -= size

        self._alive[key] = ref(storage, subtract)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result


def rehearse_pass(model: PreTrainedModel, rows: int, options: PassOptions) -> PassMemory:
    """Runs a forward and backward pass of a micro-batch, and leaves the model without gradients.

    Args:
        model: Built inside `rehearsal_mode`, which is still entered.
        rows: Of the micro-batch.
        options: How passes are computed.
    """
    tokens = rows * options.seq_len
    inputs: dict[str, Any] = {}
    shape = (rows, options.seq_len)
    if options.document_tokens is not None:
        boundaries = [*range(0, tokens, options.document_tokens), tokens]
        with _real_tensors():
            cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
        remember_boundaries(cu_seqlens, boundaries)
        inputs["cu_seqlens"] = cu_seqlens
        shape = (1, tokens)
    ids = torch.zeros(shape, dtype=torch.long)
    if accepts_num_items_in_batch(type(model)):
        inputs["num_items_in_batch"] = torch.ones((), dtype=torch.long)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if options.keeps_gradients:
        for parameter in trainable:
            parameter.grad = torch.zeros_like(parameter)
    tracker = _StorageTracker()
    with tracker, _gpu_of_memory(options.gpu_memory_bytes):
        for parameter in model.parameters():
            tracker.add(parameter)
        weights = tracker.alive_bytes
        for parameter in trainable:
            if parameter.grad is not None:
                tracker.add(parameter.grad)
        before = tracker.alive_bytes
        # of gradients that passes find
        tracker.peak_bytes = before
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False, **inputs).loss
        kept = tracker.alive_bytes - before
        above = tracker.peak_bytes - before - kept
        loss.backward()
    model.zero_grad(set_to_none=True)
    gradients = sum(p.numel() * p.element_size() for p in trainable)
    return PassMemory(weights, gradients, kept, above, tracker.peak_bytes)


def prepare_for_rehearsal(
    model: PreTrainedModel,
    options: PassOptions,
    activation_checkpoint: ActivationCheckpointConfig,
) -> None:
    """Does to a model what a run does before its first step, as far as memory depends on it."""
    if options.bf16 and options.bf16_stream:
        cast_embeddings_under_autocast(model)
    recomputed = activation_checkpoint.mode != "none"
    kernels.share_inputs_of_linear_maps(model, compiled=False, recomputed=recomputed)
    checkpoint_activations(model, activation_checkpoint)
    model.train()


@contextmanager
def rehearsal_mode(model_options: ModelConfig) -> Iterator[None]:
    """Inside the block tensors have sizes only, and code runs as on a GPU with Triton.

    Args:
        model_options: Section model: which kernels run.
    """
    kernels_before = list(_active)
    kernels.uninstall()
    with ExitStack() as undone:
        undone.callback(lambda: [kernels.install(kind) for kind in kernels_before])
        undone.callback(kernels.uninstall)
        undone.enter_context(torch.compiler.set_stance("force_eager"))
        undone.enter_context(_without_initial_values_of_rwkv7())
        undone.enter_context(_triton_path_without_launches())
        kernels.install("triton")
        kernels.choose_operator_recompute(model_options.recompute_operators)
        kernels.install_fused_kernels()
        if not model_options.fused_kernels:
            undone.enter_context(fused_kernels_disabled())
        undone.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


@contextmanager
def _real_tensors() -> Iterator[None]:
    """Tensors made in the block have values, inside of a rehearsal too."""
    mode = torch._C._unset_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    try:
        yield
    finally:
        if mode is not None:
            torch._C._set_dispatch_mode(mode)


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """An attribute has another value in the block."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _without_initial_values_of_rwkv7() -> Iterator[None]:
    """Its constructors compute values one by one, for seconds, that are none here."""
    layer: Any = importlib.import_module("fla.layers.rwkv7").RWKV7Attention
    forward: Any = importlib.import_module("fla.models.rwkv7.modeling_rwkv7").RWKV7FeedForward

    def leave(*_: object) -> None:
        return

    with (
        _replaced(layer, "_initialize_weights", leave),
        _replaced(forward, "_initialize_weights", leave),
    ):
        yield


@contextmanager
def _triton_path_without_launches() -> Iterator[None]:
    """Code that asks for a GPU finds one; what only a GPU can do gets results of the right size."""
    install: Any = importlib.import_module("flame_accel.kernels.install")
    interface: Any = importlib.import_module("triton.runtime.jit").KernelInterface
    cross_entropy: Any = importlib.import_module("fla.modules.fused_cross_entropy.ops")
    attention: Any = importlib.import_module("flame_accel.kernels.attention.flash_attention")
    shared_input: Any = importlib.import_module(f"{FUSED}.shared_input")
    loss: Any = importlib.import_module(f"{FUSED}.linear_cross_entropy")

    def skip_launch(*_: object, **__: object) -> None:
        return

    def cross_entropy_on_any_device(self: Any, logits: Tensor, target: Tensor) -> Tensor:
        nats, _ = cross_entropy.cross_entropy_loss(
            logits,
            target,
            ignore_index=self.ignore_index,
            inplace_backward=self.inplace_backward,
        )
        return nats.sum() / (target != self.ignore_index).sum()

    replacements: Sequence[tuple[Any, str, object]] = (
        (install, "triton_has_device", lambda: True),
        (interface, "__getitem__", lambda kernel, grid: skip_launch),
        (FakeTensor, "is_cuda", property(lambda tensor: True)),
        (cross_entropy.FusedCrossEntropyLoss, "forward", cross_entropy_on_any_device),
        (attention, "_supports_flash_kernel", lambda q: True),
        (attention, "varlen_attn", _attention_of_same_size),
        (attention.flash_attn_4, "serves_call", lambda *_, **__: False),
        (shared_input, "_matmul_into_dtype", _product_of_same_size),
        (loss, "_add_product", skip_launch),
    )
    with ExitStack() as undone:
        for owner, name, value in replacements:
            undone.enter_context(_replaced(owner, name, value))
        yield


@contextmanager
def _gpu_of_memory(gpu_memory_bytes: int) -> Iterator[None]:
    """Operators that keep what fits find a GPU with that memory."""
    rwkv7: Any = importlib.import_module(f"{FUSED}.rwkv7_mixer")
    name = "mode_or_memory_keeps_rwkv7_intermediates"
    keeps_intermediates = getattr(rwkv7, name)

    def decide(layer: Any, tokens: int, _: object) -> bool:
        return keeps_intermediates(layer, tokens, gpu_memory_bytes)

    with _replaced(rwkv7, name, decide):
        yield


def _product_of_same_size(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1], dtype=out_dtype)


class _AttentionOfSameSize(torch.autograd.Function):
    """What flash attention keeps and returns: outputs, and a sum for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, o, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _attention_of_same_size(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    return _AttentionOfSameSize.apply(q, k, v)
