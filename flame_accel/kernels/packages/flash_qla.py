"""The gated delta rule of training by FlashQLA, whose kernels are written in TileLang.

fla dispatches to FlashQLA itself where it is installed, but not from its own layers: they leave
gate, beta and heads of more than 128 value channels to the operator, which FlashQLA does not take.
Here gate and beta are computed before, and a head of values of 256 channels is
two of 128 with the same keys, gate and beta: its state has a column for each channel, so that this
is exact.

FlashQLA compiles its kernels at the first call of a kind, in a minute or two, and TileLang keeps
them in its cache folder. Chunks of documents are counted on the host where the boundaries are
known there, and documents are not split further, which needs their lengths on the host.

Shape letters: B batch, T tokens, N documents, H heads, G heads of values, K channels of a key, V
channels of a value.
"""

import importlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flame_accel.kernels.boundaries_on_host import (
    document_and_number_of_chunks,
    find_known_boundaries,
    first_chunks_of_documents,
)
from flame_accel.kernels.packages.found import package_kernels_are_allowed

logger = logging.getLogger(__name__)

CHANNELS = 128
"""Of a key, and of a value in FlashQLA."""
CHUNK = 64
"""Tokens of a chunk on Hopper GPUs."""

OutputsAndOptionalStates = tuple[Tensor, Tensor | None]

_functions: list[Callable[..., OutputsAndOptionalStates]] = []
_told: set[str] = set()
_undo: list[Callable[[], None]] = []


def activate() -> None:
    """Loads the package, and makes fla's `chunk_gated_delta_rule` call it.

    Raises:
        ImportError: Of the package or of what it needs.
    """
    package = importlib.import_module("flash_qla")
    deactivate()
    _functions.append(package.chunk_gated_delta_rule)
    _register_fla_backend()


def deactivate() -> None:
    """No call is served from now on."""
    _functions.clear()
    _told.clear()
    while _undo:
        _undo.pop()()


def _register_fla_backend() -> None:
    from fla import backends

    class FlashQLABackendUntilDeactivated(backends.BaseBackend):
        backend_type = "flame_accel_flash_qla"
        # before fla's own way to FlashQLA
        priority = 2
        active = True
        chunk_gated_delta_rule = staticmethod(chunk_gated_delta_rule)

        @classmethod
        def is_available(cls) -> bool:
            return cls.active

        def verify(self, function_name: str, *args: Any, **kwargs: Any) -> tuple[bool, str | None]:
            # other functions of the operation are dispatched too, such as its gate
            asked = function_name == "chunk_gated_delta_rule"
            return asked and serves_call(*args, **kwargs), "see flame_accel's log"

    importlib.import_module("fla.ops.gated_delta_rule.backends")
    backends.register("gated_delta_rule")(FlashQLABackendUntilDeactivated)
    _undo.append(partial(setattr, FlashQLABackendUntilDeactivated, "active", False))


def serves_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    **options: Any,
) -> bool:
    """Whether a call is to be made here. Of a training run, the log says once why one is not.

    Args:
        q: Queries [B, T, H, K].
        k: Keys [B, T, H, K].
        v: Values [B, T, G, V].
        g: Of `chunk_gated_delta_rule`.
        beta: Of `chunk_gated_delta_rule`.
        options: Its other arguments.
    """
    if not (_functions and package_kernels_are_allowed()):
        return False
    reason = _reason_to_leave_call(q, k, v, options)
    if reason is not None and torch.is_grad_enabled() and reason not in _told:
        _told.add(reason)
        logger.info("fla's gated delta rule, and not FlashQLA, for %s", reason)
    return reason is None


def _reason_to_leave_call(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> str | None:
    if not _is_half_on_gpu(q) or not q.dtype == k.dtype == v.dtype:
        return f"tensors of {q.dtype}, {k.dtype} and {v.dtype} on {q.device.type}"
    if q.shape[-1] != CHANNELS or v.shape[-1] % CHANNELS:
        return f"heads of {q.shape[-1]} channels ({v.shape[-1]} of values)"
    if options.get("cp_context") is not None:
        return "rows that are split over GPUs"
    if not torch.is_grad_enabled() or options.get("output_final_state"):
        return "generation"
    unknown = options.keys() - KNOWN_OPTIONS
    return f"the arguments {', '.join(sorted(unknown))}" if unknown else None


KNOWN_OPTIONS = {
    "scale",
    "initial_state",
    "output_final_state",
    "use_qk_l2norm_in_kernel",
    "use_beta_sigmoid_in_kernel",
    "allow_neg_eigval",
    "state_v_first",
    "cu_seqlens",
    "cu_seqlens_cpu",
    "chunk_indices",
    "cp_context",
    "use_gate_in_kernel",
    "A_log",
    "dt_bias",
}
"""Arguments of fla's operator that `chunk_gated_delta_rule` takes."""


def _is_half_on_gpu(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: None = None,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
) -> OutputsAndOptionalStates:
    """Does what fla's operator of this name does: outputs [B, T, G, V] and None.

    Args:
        q: Queries [B, T, H, K].
        k: Keys [B, T, H, K]; G is a multiple of H.
        v: Values [B, T, G, V]; V is a multiple of 128.
        g: Logarithms of decays [B, T, G], or what they are computed from.
        beta: Shares of a value that are written [B, T, G], or their logits.
        scale: Of the queries; 1 / sqrt(K) if None.
        initial_state: [N, G, K, V], or [N, G, V, K] if `state_v_first`; None is zero.
        output_final_state: Must be false.
        use_qk_l2norm_in_kernel: Whether queries and keys are divided by their norms.
        use_beta_sigmoid_in_kernel: Whether `beta` are logits.
        allow_neg_eigval: Whether the sigmoids of logits are doubled.
        state_v_first: How states lie in memory.
        cu_seqlens: Boundaries of packed documents [N + 1]; then B is 1.
        cu_seqlens_cpu: Not needed.
        chunk_indices: Not needed.
        cp_context: Must be None.
        use_gate_in_kernel: Whether g = -exp(A_log) softplus(g + dt_bias).
        A_log: [G].
        dt_bias: [G] or None.
    """
    del output_final_state, cu_seqlens_cpu, chunk_indices, cp_context
    if use_gate_in_kernel:
        gate: Any = importlib.import_module("fla.ops.gated_delta_rule.gate")
        g = gate.fused_gdn_gate(g, A_log, dt_bias)
    if use_beta_sigmoid_in_kernel:
        beta = beta.float().sigmoid() * (2.0 if allow_neg_eigval else 1.0)
    if use_qk_l2norm_in_kernel:
        norm: Any = importlib.import_module("fla.modules.norm.l2norm")
        q, k = norm.l2norm(q), norm.l2norm(k)
    parts = v.shape[-1] // CHANNELS
    g, beta = (x.float().repeat_interleave(parts, -1) for x in (g, beta))
    o, _ = _functions[0](
        q=q,
        k=k,
        v=v.unflatten(-1, (parts, CHANNELS)).flatten(2, 3),
        g=g,
        beta=beta,
        scale=scale,
        initial_state=_split_state_values(initial_state, parts, state_v_first),
        output_final_state=False,
        state_v_first=state_v_first,
        cu_seqlens=None if cu_seqlens is None else _with_chunks_counted_on_host(cu_seqlens),
        auto_cp=False,
    )
    return o.unflatten(2, (-1, parts)).flatten(3, 4), None


def _split_state_values(state: Tensor | None, parts: int, v_first: bool) -> Tensor | None:
    """A state [N, G, ...] as the states of heads of 128 value channels [N, G * parts, ...]."""
    if state is None or parts == 1:
        return state
    split = state.unflatten(2 if v_first else 3, (parts, CHANNELS))
    return (split if v_first else split.movedim(3, 2)).flatten(1, 2).contiguous()


def _with_chunks_counted_on_host(cu_seqlens: Tensor) -> Tensor:
    """The boundaries, with what FlashQLA would wait for the device to know of their chunks.

    It looks for chunk size, first chunk of each document, number of chunks, and document and number
    of each chunk under this name.
    """
    known = find_known_boundaries(cu_seqlens)
    if known is not None:
        cu_seqlens._flash_qla_prepared_varlen = (  # type: ignore[attr-defined]
            CHUNK,
            first_chunks_of_documents(known, cu_seqlens, CHUNK),
            known.count_chunks(CHUNK),
            document_and_number_of_chunks(known, cu_seqlens, CHUNK),
        )
    return cu_seqlens
