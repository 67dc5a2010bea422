"""Launches of fla's kernels that must not use as many warps as fla asks for.

`tuner` chooses for kernels that fla lets Triton tune; these it launches with a fixed number.
"""

from typing import Any

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
