"""RWKV-7's feed-forward, relu(mix(x) K^T)^2 V^T, keeping its input and the first product.

(2503.14456). The mix with the token before and the squares are computed again in the backward pass.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from fla.models.rwkv7.modeling_rwkv7 import RWKV7FeedForward
from fla.modules import activations
from torch import Tensor, nn

from flame_accel.kernels.fused.token_mix import (
    mark_document_starts_as_int8,
    mix_gradients,
    mix_with_previous_token,
)
from flame_accel.kernels.fused.training_calls import (
    are_whole_parameters,
    is_unpadded_training_call,
)

BLOCK = 2048
"""Elements of a program, 16 for each thread."""
WIDEST = 8192


# specialized in `size`: a mask that is known to be aligned leaves loads 16 bytes wide
@triton.jit
def _squared_relu_forward_kernel(x, z, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    b_x = tl.maximum(tl.load(x + places, mask=inside, other=0.0).to(tl.float32), 0.0)
    tl.store(z + places, (b_x * b_x).to(z.dtype.element_ty), mask=inside)


@triton.jit
def _squared_relu_backward_kernel(x, dz, z, dx, size, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    b_x = tl.maximum(tl.load(x + places, mask=inside, other=0.0).to(tl.float32), 0.0)
    b_dz = tl.load(dz + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(z + places, (b_x * b_x).to(z.dtype.element_ty), mask=inside)
    tl.store(dx + places, (2 * b_dz * b_x).to(dx.dtype.element_ty), mask=inside)


# launches have options that are no parameters
_FORWARD: Any = _squared_relu_forward_kernel
_BACKWARD: Any = _squared_relu_backward_kernel


class _MixedFeedForward(torch.autograd.Function):
    """Tensors of one dtype, autocast off: x [B, T, N], mu [1, N]; returns [M, N]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, starts: Tensor, mu: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        product = mix_with_previous_token(x, starts, mu)[0] @ key.t()
        ctx.save_for_backward(x, starts, mu, key, value, product)
        squares = torch.empty_like(product)
        size = product.numel()
        _FORWARD[(-(-size // BLOCK),)](product, squares, size, BLOCK)
        return squares @ value.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, starts, mu, key, value, product = ctx.saved_tensors
        dout = grads[0]
        squares, dproduct = torch.empty_like(product), dout @ value
        size = product.numel()
        _BACKWARD[(-(-size // BLOCK),)](product, dproduct, squares, dproduct, size, BLOCK)
        dvalue = dout.t() @ squares
        del squares
        mixes = mix_with_previous_token(x, starts, mu)
        dkey = dproduct.t() @ mixes[0]
        found = mix_gradients(x, starts, mu, (dproduct @ key).unsqueeze(0))
        return found.x, None, found.mus, dkey, dvalue


@torch.compiler.disable
def forward_rwkv7_feed_forward(
    layer: RWKV7FeedForward,
    x: Tensor,
    attention_mask: Tensor | None = None,
    state: Any = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """As fla's `RWKV7FeedForward.forward`, if `supports_rwkv7_feed_forward_training`."""
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        mu = layer.x_k.view(1, -1)
        key, value = layer.key.weight.to(dtype), layer.value.weight.to(dtype)
        starts = mark_document_starts_as_int8(x, cu_seqlens)
        out = _MixedFeedForward.apply(x.to(dtype).contiguous(), starts, mu, key, value)
    return out.view(x.shape), state


def supports_rwkv7_feed_forward_training(
    layer: RWKV7FeedForward,
    x: Tensor,
    attention_mask: Tensor | None = None,
    state: Any = None,
    *args: Any,
    **kwargs: Any,
) -> bool:
    """Whether a call is for ours: of training, without padding, with a layer of the usual form."""
    maps = (layer.key, layer.value)
    usual = layer.act_fn is activations.ACT2FN["sqrelu"] and layer.hidden_size <= WIDEST
    plain = all(type(m) is nn.Linear and m.bias is None for m in maps)
    learns = is_unpadded_training_call(x, attention_mask, state)
    return learns and usual and plain and are_whole_parameters(layer.parameters())
