"""Options of large runs: recomputed activations, 8-bit floats, and what is experimental."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationCheckpointConfig:
    """Activations recomputed in the backward pass instead of kept: less memory, more time."""

    mode: Literal["none", "full", "selective"] = "none"
    """Which activations to recompute: none, those of every layer, or a selection."""
    selective_ac_option: str = "2"
    """What mode selective recomputes: a number n for every n-th layer, or "op" for all operators
    but the expensive ones, which are fla's sequence mixers and softmax attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8Config:
    """Matrix products in 8-bit floats."""

    enable_fsdp_float8_all_gather: bool = False
    """Gather sharded weights in 8 bits instead of 16; only with float8.recipe_name tensorwise."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """Compute the scales of all sharded weights in one exchange after the update; only with
    float8.enable_fsdp_float8_all_gather."""
    force_recompute_fp8_weight_in_bwd: bool = False
    """Cast the weights to 8 bits again in the backward pass instead of keeping them, which torchao
    does in any case by now."""
    recipe_name: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None = None
    """How the large matrix products are scaled: tensorwise is the fastest; rowwise has a scale for
    each row; rowwise_with_gw_hp has them too and computes the gradients of weights in full, the
    most exact. Needs a GPU of compute capability 8.9 or above. None leaves 8-bit floats off."""
    emulate: bool = False
    """Compute with the rounding of 8-bit floats but without their hardware: slow, anywhere, to try
    a recipe out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentalConfig:
    """What flame calls experimental."""

    context_parallel_degree: int = 1
    """Number of devices that share a sequence. 1 means disabled."""
    pipeline_parallel_degree: int = 1
    """Number of devices that share the layers. 1 means disabled."""
    enable_async_tensor_parallel: bool = False
    """Overlap the communication of tensor parallelism with its matrix products."""
    enable_compiled_autograd: bool = False
    """Compile the backward pass as one graph."""
