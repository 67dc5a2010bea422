"""Layers of transformers' own models that carry a state over time, for packed documents.

transformers computes convolutions, the gated delta rule, KDA and Mamba2 with functions that each
modeling module has under the same names. They keep documents apart only with the packages
causal_conv1d and mamba_ssm, which have no wheels. Here the functions of fla serve instead, in
Triton or in PyTorch, whichever is installed, wherever a layer is told the boundaries of documents.
Without boundaries transformers' own functions run. Softmax attention is not treated here.

Shape letters: B batch, T tokens, N documents, H heads, G groups, K width of B and C, V width of a
head, D channels, W taps of a filter.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from fla.modules.causal_conv1d import ops as convolution
from fla.ops import gated_delta_rule, kda, simple_gla
from torch import Tensor
from transformers.activations import ACT2FN

from flame_accel.kernels.recurrence.sequences import OutputsAndOptionalStates

LayerFunction = Callable[..., Any]

DELTA_RULE_OPTIONS = ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")
"""Arguments of transformers' delta rules that fla's have too, under the same names."""


def install_packed_functions(modeling_module: ModuleType) -> bool:
    """Makes the functions of a modeling module keep documents apart where they get boundaries.

    The layers pass them on as `cu_seq_lens_q`, int32 [N + 1]. Calling it again is harmless.

    Returns:
        Whether the module has any of these functions.
    """
    names = [name for name in PACKED_FUNCTIONS if hasattr(modeling_module, name)]
    for name in names:
        function = getattr(modeling_module, name)
        if not getattr(function, "keeps_documents_apart", False):
            packed: Any = PACKED_FUNCTIONS[name](function)
            packed.keeps_documents_apart = True
            setattr(modeling_module, name, packed)
    return bool(names)


def _wrap_convolution_to_separate_documents(original: LayerFunction) -> LayerFunction:
    def causal_conv1d_fn(
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Outputs [1, D, T] of inputs [1, D, T] and filters [D, W]."""
        if cu_seq_lens_q is None:
            return original(hidden_states, weight, bias, activation=activation, **options)
        fused = activation in ("silu", "swish")
        convolve: Any = convolution.causal_conv1d
        outputs, _ = convolve(
            x=hidden_states.mT.contiguous(),
            weight=weight,
            bias=bias,
            activation="silu" if fused else None,
            cu_seqlens=cu_seq_lens_q,
        )
        if activation is not None and not fused:
            outputs = ACT2FN[activation](outputs)
        return outputs.mT

    return causal_conv1d_fn


def _wrap_delta_rule_to_separate_documents(
    original: LayerFunction, *, fla_module: ModuleType, fla_name: str, boundaries_argument: str
) -> LayerFunction:
    """A delta rule of transformers, by an operator of fla where boundaries are given.

    Args:
        original: transformers' function.
        fla_module: Has the operator, as it is installed when a layer runs.
        fla_name: Its name.
        boundaries_argument: The name under which layers give boundaries.
    """

    def chunk_delta_rule(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **options: Any
    ) -> OutputsAndOptionalStates:
        """Outputs [B, T, H, V] and final states or None."""
        cu_seqlens = options.pop(boundaries_argument, None)
        if cu_seqlens is None:
            return original(query, key, value, g=g, beta=beta, **options)
        known = {name: options[name] for name in DELTA_RULE_OPTIONS if name in options}
        operator = getattr(fla_module, fla_name)
        return operator(query, key, value, g=g, beta=beta, **known, cu_seqlens=cu_seqlens)

    return chunk_delta_rule


def _wrap_mamba2_to_separate_documents(original: LayerFunction) -> LayerFunction:
    def mamba2_chunk_scan(
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        cu_seq_lens_q: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Outputs [B, T, H, V] of inputs [B, T, H, V], steps [B, T, H], B and C [B, T, G, K]."""
        if cu_seq_lens_q is None:
            return original(
                hidden_states, dt, A, B, C, chunk_size,
                D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit, **options,
            )  # fmt: skip
        dt = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
        dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
        heads_per_group = hidden_states.shape[2] // B.shape[2]
        operator: Any = simple_gla.chunk_simple_gla
        outputs, _ = operator(
            q=C.repeat_interleave(heads_per_group, 2),
            k=B.repeat_interleave(heads_per_group, 2),
            v=(hidden_states * dt.unsqueeze(-1)).to(hidden_states.dtype),
            g=A.float() * dt,
            scale=1.0,
            cu_seqlens=cu_seq_lens_q,
        )
        return outputs if D is None else outputs + hidden_states * D.unsqueeze(-1)

    return mamba2_chunk_scan


def _wrap_fused_mamba2_to_return_none_if_packed(original: LayerFunction) -> LayerFunction:
    def mamba2_split_conv1d_scan_combined(
        *arguments: Any, cu_seq_lens_q: Tensor | None = None, **options: Any
    ) -> Any:
        """None for packed documents: the layer then calls the functions above one by one."""
        return None if cu_seq_lens_q is not None else original(*arguments, **options)

    return mamba2_split_conv1d_scan_combined


PACKED_FUNCTIONS: dict[str, Callable[[LayerFunction], LayerFunction]] = {
    "causal_conv1d_fn": _wrap_convolution_to_separate_documents,
    "torch_chunk_gated_delta_rule": partial(
        _wrap_delta_rule_to_separate_documents,
        fla_module=gated_delta_rule,
        fla_name="chunk_gated_delta_rule",
        boundaries_argument="cu_seqlens",
    ),
    "chunk_kimi_delta_attention": partial(
        _wrap_delta_rule_to_separate_documents,
        fla_module=kda,
        fla_name="chunk_kda",
        boundaries_argument="cu_seq_lens_q",
    ),
    "mamba2_chunk_scan": _wrap_mamba2_to_separate_documents,
    "mamba2_split_conv1d_scan_combined": _wrap_fused_mamba2_to_return_none_if_packed,
}
"""A function of transformers' modeling modules -> what makes one that keeps documents apart."""
