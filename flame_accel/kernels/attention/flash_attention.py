"""The two functions that fla's softmax layers import from the flash-attn package.

The attention of training goes to flash-attn-4 where it is installed and serves
(`packages.flash_attn_4`). On GPUs with flash kernels packed rows and windows go to PyTorch's own
flash attention (`torch.nn.attention.varlen`); all else goes to `softmax_attention`, where PyTorch
picks a kernel.
"""

import inspect
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.per_document import map_rows_or_packed_documents
from flame_accel.kernels.attention.softmax_attention import softmax_attention
from flame_accel.kernels.boundaries_on_host import longest_document_remembering_boundaries
from flame_accel.kernels.packages import flash_attn_4
from flame_accel.kernels.recurrence.sequences import split_sequences

# torch 2.12 wants to be told of shared heads, torch 2.11 finds out
_SHARED_HEADS: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **options: Any,
) -> Tensor:
    """Attention of `q` [B, T, H, D] to `k`, `v` [B, S, G, D], as `softmax_attention` says.

    Args:
        q: Queries, the last T of S positions.
        k: Keys; H is a multiple of G.
        v: Values.
        dropout_p: Must be 0.
        softmax_scale: 1 / sqrt(D) if None.
        causal: Whether a query sees no later key.
        window_size: How many keys before and after its own a query sees; -1 is no limit.
        options: Others of flash-attn, of which only `deterministic` may be set: PyTorch decides on
            that by `torch.use_deterministic_algorithms`.

    Raises:
        UserError: An option has no counterpart in PyTorch.
    """
    _check_no_unsupported_flash_attn_option(dropout_p, options)
    q, k, v = _cast_to_autocast_dtype(q, k, v)
    left_window, right_window = window_size[0], 0 if causal else window_size[1]
    num_queries, num_keys = q.shape[1], k.shape[1]
    if flash_attn_4.serves_call(
        q, k, v, longest=num_queries, left_window=left_window, right_window=right_window
    ):
        return flash_attn_4.attend_rows(q, k, v, scale=softmax_scale, window=left_window)
    # rows that a kernel of `scaled_dot_product_attention` takes without a mask are left to it
    masked = 0 <= left_window < num_keys - 1 or (
        num_queries > 1 and right_window == 0 and num_queries < num_keys
    )
    if not (masked and _supports_flash_kernel(q)):
        return softmax_attention(q, k, v, softmax_scale, left_window, right_window)
    edges = torch.arange(q.shape[0] + 1, device=q.device, dtype=torch.int32)
    o = _varlen_attention_of_any_head_dim(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), edges * num_queries, edges * num_keys,
        num_queries, num_keys, softmax_scale, (left_window, right_window),
    )  # fmt: skip
    return o.unflatten(0, q.shape[:2])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **options: Any,
) -> Tensor:
    """As `flash_attn_func`, of documents in a row: `q` [tokens, H, D], boundaries [N + 1].

    The largest lengths are taken from the boundaries: fla passes the length of the row for both.
    """
    _check_no_unsupported_flash_attn_option(dropout_p, options)
    q, k, v = _cast_to_autocast_dtype(q, k, v)
    left_window, right_window = window_size[0], 0 if causal else window_size[1]
    if _supports_flash_kernel(q):
        longest = longest_document_remembering_boundaries(cu_seqlens_q)
        if cu_seqlens_q is cu_seqlens_k and flash_attn_4.serves_call(
            q, k, v, longest=longest, left_window=left_window, right_window=right_window
        ):
            return flash_attn_4.attend_documents(
                q, k, v, cu_seqlens_q.int(),
                longest=longest, scale=softmax_scale, window=left_window,
            )  # fmt: skip
        return _varlen_attention_of_any_head_dim(
            q, k, v, cu_seqlens_q.int(), cu_seqlens_k.int(),
            longest, longest_document_remembering_boundaries(cu_seqlens_k),
            softmax_scale, (left_window, right_window),
        )  # fmt: skip

    attend = partial(
        softmax_attention,
        scale=softmax_scale,
        left_window=left_window,
        right_window=right_window,
    )
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    if right_window == 0 and (
        cu_seqlens_q is cu_seqlens_k or torch.equal(cu_seqlens_q, cu_seqlens_k)
    ):
        return map_rows_or_packed_documents(attend, cu_seqlens_q, q, k, v).squeeze(0)
    edges = (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)
    documents = zip(*map(split_sequences, (q, k, v), edges), strict=True)
    return torch.cat([attend(*document).squeeze(0) for document in documents])


def _check_no_unsupported_flash_attn_option(dropout_p: float, options: dict[str, Any]) -> None:
    for name, value in {"dropout_p": dropout_p, **options}.items():
        if value and name != "deterministic":
            raise UserError(
                f"attention with {name}={value} has no counterpart in PyTorch",
                remedy="install flash-attn, which fla then uses by itself",
            )


def _cast_to_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _supports_flash_kernel(q: Tensor) -> bool:
    return (
        q.is_cuda
        and torch.version.cuda is not None
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _varlen_attention_of_any_head_dim(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    channels = q.shape[-1]
    if channels % 8:
        scale = channels**-0.5 if scale is None else scale
        q, k, v = (F.pad(x, (0, -channels % 8)) for x in (q, k, v))
    o = varlen_attn(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        scale=scale, window_size=window_size, **_SHARED_HEADS,
    )  # fmt: skip
    assert isinstance(o, Tensor)
    return o[..., :channels]
