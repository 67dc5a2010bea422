"""Puts our Triton kernels in the place of functions of fla and PyTorch, where they support a call.

Nothing is replaced in a call that ours do not support, nor inside `fused_kernels_disabled`.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from flame_accel.kernels.install import (
    Replacement,
    _replace_in_loaded_modules,
    _resolve_attribute_value_or_none,
    _set_attribute_with_undo,
)


class FusedFunction(NamedTuple):
    """One of our functions, and the one of fla that it replaces."""

    theirs: str
    """Dotted path below `fla.`"""
    module: str
    """Ours, below `flame_accel.kernels.fused.`; the function has the same name."""
    supports: str
    """In the same module: whether a call is one for ours."""
    ours: str | None = None
    """Its name, if it is another."""


FUSED = (
    FusedFunction("modules.norm.layernorm.rms_norm", "norm", "supports_norm_of_limited_width"),
    FusedFunction("modules.norm.layernorm.layer_norm", "norm", "supports_norm_of_limited_width"),
    FusedFunction(
        "modules.norm.fused_norm_gate.rms_norm_gated", "norm", "supports_rms_norm_gated_options"
    ),
    FusedFunction(
        "modules.activations.ops.swiglu", "swiglu", "supports_swiglu_same_shape_and_dtype"
    ),
    FusedFunction(
        "modules.activations.ops.swiglu_linear", "swiglu", "supports_swiglu_same_shape_and_dtype"
    ),
    FusedFunction(
        "modules.fused_linear_cross_entropy.ops.fused_linear_cross_entropy_loss",
        "linear_cross_entropy",
        "supports_plain_loss_unless_l2warp_mean",
    ),
    FusedFunction(
        "layers.mamba2.Mamba2.forward", "mamba2", "supports_mamba2_training_call", "forward_mamba2"
    ),
    FusedFunction(
        "layers.rwkv7.RWKV7Attention.forward",
        "rwkv7",
        "supports_rwkv7_training_call",
        "forward_rwkv7",
    ),
    FusedFunction(
        "models.rwkv7.modeling_rwkv7.RWKV7FeedForward.forward",
        "rwkv7_feed_forward",
        "supports_rwkv7_feed_forward_training",
        "forward_rwkv7_feed_forward",
    ),
)

_allowed = [True]


@contextmanager
def fused_kernels_disabled() -> Iterator[None]:
    """Has fla's own functions called inside the block, to compare with."""
    _allowed.append(False)
    try:
        yield
    finally:
        _allowed.pop()


def fused_kernels_are_allowed() -> bool:
    """Whether the caller is outside of all `fused_kernels_disabled`."""
    return _allowed[-1]


def fused_kernels_are_installed() -> bool:
    """Whether `install_fused_kernels` was called, and nothing was uninstalled since."""
    torch_embedding: Any = importlib.import_module("torch.nn").Embedding
    return hasattr(torch_embedding.forward, "replaces")


def install_fused_kernels() -> None:
    """Replaces norms, SwiGLU, embeddings and the loss of fla's models until `uninstall`.

    For machines where Triton has a device.
    """
    importlib.import_module("fla")
    replacements: dict[int, Replacement] = {}
    for theirs, module_name, supports, our_name in FUSED:
        owner, name, original = _resolve_attribute_value_or_none(f"fla.{theirs}")
        if hasattr(original, "replaces"):
            continue
        module = importlib.import_module(f"flame_accel.kernels.fused.{module_name}")
        ours = _choose_implementation_per_call(
            getattr(module, our_name or name), getattr(module, supports), original
        )
        if isinstance(owner, type):
            _set_attribute_with_undo(owner, name, ours)
        else:
            replacements[id(original)] = Replacement(original, ours)
    if not replacements:
        return
    _replace_in_loaded_modules(replacements)
    embedding = importlib.import_module("flame_accel.kernels.fused.embedding")
    torch_embedding: Any = importlib.import_module("torch.nn").Embedding
    forward = _choose_implementation_per_call(
        embedding.embedding_forward,
        embedding.supports_embedding_training_call,
        torch_embedding.forward,
    )
    _set_attribute_with_undo(torch_embedding, "forward", forward)
    causal_lm: Any = importlib.import_module("fla.models.modeling_utils").FLAForCausalLM
    name = "_compute_logits_and_loss"
    _set_attribute_with_undo(causal_lm, name, _leave_logits_out_in_training(causal_lm, name))


def share_inputs_of_linear_maps(model: Any, *, compiled: bool, recomputed: bool) -> None:
    """As `shared_input.share_inputs_of_linear_maps`, which needs torch."""
    module = importlib.import_module("flame_accel.kernels.fused.shared_input")
    module.share_inputs_of_linear_maps(model, compiled=compiled, recomputed=recomputed)


def _leave_logits_out_in_training(causal_lm: Any, name: str) -> Callable[..., Any]:
    """The method of fla's models that computes logits and loss; logits are None where they learn.

    The loss is then that of `fused_linear_cross_entropy_loss`, whatever the config says. Not so
    where the head is more than a product with a weight that this process has: in 8 bits, sharded,
    or with hooks that gather it.
    """
    original = getattr(causal_lm, name)

    @functools.wraps(original)
    def compute_logits_and_loss(
        model: Any, hidden_states: Any, *args: Any, num_items_in_batch: Any = None, **options: Any
    ) -> Any:
        head = model.lm_head
        if (
            _allowed[-1]
            and model.training
            and num_items_in_batch is not None
            and options.get("fuse_linear_cross_entropy") is None
            and getattr(model, "criterion", None) is None
            and model.config.fuse_cross_entropy
            and _is_biasless_unhooked_linear_on_gpu(head)
        ):
            options["fuse_linear_cross_entropy"] = True
        return original(
            model, hidden_states, *args, num_items_in_batch=num_items_in_batch, **options
        )

    return compute_logits_and_loss


def _is_biasless_unhooked_linear_on_gpu(module: Any) -> bool:
    import torch
    from torch.distributed.tensor import DTensor

    has_hooks = module._forward_pre_hooks or module._forward_hooks
    return (
        type(module) is torch.nn.Linear
        and module.bias is None
        and module.weight.is_cuda
        and not (has_hooks or isinstance(module.weight, DTensor))
    )


def _choose_implementation_per_call(
    ours: Callable[..., Any], supports_call: Callable[..., bool], original: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(ours)
    def call_ours_if_supported(*args: Any, **kwargs: Any) -> Any:
        function = ours if _allowed[-1] and supports_call(*args, **kwargs) else original
        return function(*args, **kwargs)

    found: Any = call_ours_if_supported
    found.replaces = original
    return found
