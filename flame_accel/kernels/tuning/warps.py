"""Launches of fla's kernels that must not use as many warps as fla asks for.

Those that fla launches with a fixed number get another one; of those that fla lets Triton tune,
`tuner` leaves candidates out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flame_accel.kernels.tuning.tuned_configs import TritonConfig

MISCOMPILED = (
    "ops.mesa_net.chunk_cg_solver_fwd.chunk_fwd_mesa_cg_dim64_kernel",
    "ops.mesa_net.chunk_h_kk_intra_bwd.chunk_mesa_net_h_kk_bwd_intra_kernel",
    "ops.path_attn.intra_chunk_preprocess_bwd.intra_chunk_preprocess_bwd_kernel",
)
"""Below `fla.`: kernels that read a register nobody wrote, on Hopper with heads of 16 or 32.

A group of four warps multiplies with `wgmma`, whose operands lie in shared memory behind a
descriptor. ptxas 12.8.93, which Triton 3.7.1 brings along, adds an offset to a descriptor that it
never computed: the address is what the register held, and the launch ends in "an illegal memory
access was encountered". ptxas 13.1.80 makes correct code of the same PTX.
"""
WIDEST = 32
"""Channels of the widest blocks of which this was seen; those of 64 and 128 come out correct."""
WARPS_WITHOUT_WGMMA = 2
TRITONS_WARPS = 4
"""What Triton takes where a launch names no number."""


def wrap_with_safe_num_warps(kernel: Any) -> Any:
    """Wraps one of `MISCOMPILED` so that `choose_safe_num_warps` decides its number of warps."""
    import triton

    return triton.heuristics({"num_warps": choose_safe_num_warps})(kernel)


def choose_safe_num_warps(launch_arguments: dict[str, Any]) -> int:
    """Number of warps of a launch of one of `MISCOMPILED`: too few for `wgmma` in narrow blocks.

    Args:
        launch_arguments: By name, `BK` (channels of a block) and maybe `num_warps` among them.
    """
    if launch_arguments["BK"] <= WIDEST:
        return WARPS_WITHOUT_WGMMA
    return launch_arguments.get("num_warps", TRITONS_WARPS)


def without_wgmma_of_narrow_heads(
    candidates: Sequence[TritonConfig], launch_arguments: Mapping[str, Any], capability: str
) -> Sequence[TritonConfig]:
    """The candidates that ptxas does not break, see `MISCOMPILED`; all if it breaks all.

    Seen in `chunk_bwd_kernel_dqkwg` of the gated delta rule; a launch of one that is broken ends
    the process, so none is tried.

    Args:
        candidates: What a kernel may run with.
        launch_arguments: By name, `K` and `V` (channels of a head) among them where there are any.
        capability: Of the GPU, as in `Gpu`.
    """
    widths = [x for x in map(launch_arguments.get, ("K", "V")) if isinstance(x, int)]
    if capability != "sm_90" or not widths or min(widths) > WIDEST:
        return candidates
    return [c for c in candidates if c.num_warps <= WARPS_WITHOUT_WGMMA] or candidates
