"""What of each layer is split over the peers of tensor parallelism: data, no torch.

A region is a module that every peer enters with the same activations and leaves with the sum of all
peers' outputs: a mixer, of which each peer has some of the heads, or an MLP, of which each has some
of the inner features. What stands outside of regions, norms and residual connections, every peer
computes alike.
"""

from dataclasses import dataclass, field

MODEL_TYPES = ("transformer", "gla", "delta_net", "gated_deltanet", "kda", "retnet", "hgrn2")
"""The model types of fla that can be split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a region is split. Names of parameters and attributes are relative to it."""

    counts: tuple[str, ...]
    """Attributes that count what is dealt out: heads or features. The degree divides them all."""
    widths: tuple[str, ...] = ()
    """Other attributes that shrink with them."""
    rows: tuple[str, ...]
    """Modules and parameters whose tensors are split along their first dimension."""
    columns: tuple[str, ...]
    """Those that are split along their second one: each peer has a part of every output's sum."""
    whole: tuple[str, ...] = ()
    """Those that every peer has whole, and whose gradients are summed, since each peer's only
    stems from its own heads."""
    overrides: dict[str, str] = field(default_factory=dict)
    """Functions that the region's forward calls and that would need to see the heads of all peers:
    name there -> name in `overrides`."""


_CONVOLUTIONS = ("q_conv1d", "k_conv1d", "v_conv1d")

PLANS: dict[str, Plan] = {
    "GatedMLP": Plan(
        counts=("intermediate_size",), rows=("gate_proj", "up_proj"), columns=("down_proj",)
    ),
    "Attention": Plan(
        counts=("num_heads", "num_kv_heads"),
        widths=("kv_dim",),
        rows=("q_proj", "k_proj", "v_proj"),
        columns=("o_proj",),
        whole=("q_norm", "k_norm"),
    ),
    "GatedLinearAttention": Plan(
        counts=("num_heads", "num_kv_heads"),
        widths=("key_dim", "value_dim", "key_dim_per_group", "value_dim_per_group"),
        rows=("q_proj", "k_proj", "v_proj", "g_proj", "gk_proj.1", *_CONVOLUTIONS),
        columns=("o_proj",),
        whole=("gk_proj.0", "g_norm_swish_gate", "g_norm"),
    ),
    "DeltaNet": Plan(
        counts=("num_heads",),
        widths=("key_dim", "value_dim"),
        rows=("q_proj", "k_proj", "v_proj", "b_proj", "g_proj", *_CONVOLUTIONS),
        columns=("o_proj",),
        whole=("o_norm",),
    ),
    "GatedDeltaNet": Plan(
        counts=("num_heads", "num_v_heads"),
        widths=("key_dim", "value_dim"),
        rows=(
            *("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj"),
            *("A_log", "dt_bias", *_CONVOLUTIONS),
        ),
        columns=("o_proj",),
        whole=("o_norm",),
    ),
    "KimiDeltaAttention": Plan(
        counts=("num_heads", "num_v_heads"),
        widths=("key_dim", "value_dim", "gate_dim"),
        rows=(
            *("q_proj", "k_proj", "v_proj", "f_proj.1", "b_proj", "g_proj.1"),
            *("A_log", "dt_bias", *_CONVOLUTIONS),
        ),
        columns=("o_proj",),
        whole=("f_proj.0", "g_proj.0", "o_norm"),
    ),
    "MultiScaleRetention": Plan(
        counts=("num_heads", "num_kv_heads"),
        widths=("key_dim", "value_dim", "key_dim_per_group", "value_dim_per_group"),
        rows=("q_proj", "k_proj", "v_proj", "g_proj", *_CONVOLUTIONS),
        columns=("o_proj",),
        whole=("g_norm_swish_gate", "g_norm"),
        # a head's decay follows from its number among all heads
        overrides={
            "chunk_retention": "Retention",
            "fused_chunk_retention": "Retention",
            "parallel_retention": "Retention",
            "fused_recurrent_retention": "Retention",
        },
    ),
    "HGRN2Attention": Plan(
        counts=("num_heads",),
        widths=("forget_dim", "input_dim"),
        rows=("q_proj", "f_proj", "i_proj", "q_conv1d", "f_conv1d", "i_conv1d", "g_norm"),
        columns=("o_proj",),
        # its norm is over the features of all heads
        overrides={"rms_norm_linear": "NormLinear"},
    ),
}
"""By the name of a class of fla."""

FEATURES_OUTSIDE: dict[str, int] = {"model.lower_bounds": 1}
"""Parameters outside of regions that belong to single features of a mixer, and the dimension along
which they are split."""
