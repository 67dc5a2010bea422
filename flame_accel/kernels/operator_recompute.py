"""Whether fla's operators compute again in the backward pass what their forward pass has computed.

No layer of fla says, and the operators of KDA and RWKV-7 do. Kept, these tensors save a part of the
backward pass and give the same bits; they take as much memory as the rest of a layer or more.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

from flame_accel.kernels.install import _undo_actions
from flame_accel.kernels.wrapping import wrap_functions

RecomputeOperators = Literal["auto", "always", "never"]
CHUNK = 64
LARGEST_SHARE = 0.85
"""Of a device's memory, that weights and activations may take together where `auto` keeps these."""
OTHER_ACTIVATIONS = 0.75
"""Bytes of all other activations of RWKV-7, as a share of these tensors' bytes."""
STATE_BYTES = 16
"""Of a parameter in training: weight, gradient and moments in fp32."""

_mode: list[RecomputeOperators] = ["auto"]


def choose_operator_recompute(mode: RecomputeOperators) -> None:
    """Sets what operators do from now on: `model.recompute_operators`.

    Args:
        mode: "never" keeps everything. "auto" does in layers of RWKV-7 of ours, if there is enough
            memory, and not in those of KDA, where it saves too little for its memory.
    """
    _mode[0] = mode
    _undo_actions.append(lambda: _mode.__setitem__(0, "auto"))
    if mode == "never":
        wrap_functions(
            ["fla.ops.kda.chunk.chunk_kda", "fla.ops.rwkv7.chunk.chunk_rwkv7"],
            _keep_intermediates_in_mode_never,
        )


def _keep_intermediates_in_mode_never(operator: Callable[..., Any]) -> Callable[..., Any]:
    torch = importlib.import_module("torch")

    @functools.wraps(operator)
    def call_without_recompute_if_grad_enabled(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and _mode[0] == "never":
            kwargs.setdefault("disable_recompute", True)
        return operator(*args, **kwargs)

    return call_without_recompute_if_grad_enabled


def mode_or_memory_keeps_rwkv7_intermediates(
    layer: Any, tokens: int, gpu_memory_bytes: int | None
) -> bool:
    """Whether a layer's operator keeps what it would compute again.

    Args:
        layer: fla's `RWKV7Attention`; all layers are taken to be like it.
        tokens: Of the batch on this device.
        gpu_memory_bytes: None for the host, which keeps nothing by itself.
    """
    if _mode[0] != "auto" or gpu_memory_bytes is None:
        return _mode[0] == "never"
    each = rwkv7_intermediate_bytes(layer.hidden_size, layer.head_dim)
    activations = (1 + OTHER_ACTIVATIONS) * each * tokens
    # the feed-forward has about twice the parameters of the mixer
    states = STATE_BYTES * 3 * sum(p.numel() for p in layer.parameters())
    return layer.num_hidden_layers * (activations + states) <= LARGEST_SHARE * gpu_memory_bytes


def rwkv7_intermediate_bytes(channels: int, head_width: int) -> int:
    """Bytes a token of one layer: sums of decays and products within chunks, scaled inputs, states.

    In bf16, but two sums and two of the four products of each head, which are in fp32.
    """
    products = (channels // head_width) * CHUNK * (2 + 2 + 4 + 4)
    states = channels * head_width * 2 // CHUNK
    return channels * (4 + 4) + products + channels * 6 * 2 + states
