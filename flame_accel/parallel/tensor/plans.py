"""How each layer is sharded over the TP ranks: data, no torch.

A region is a mixer or an MLP: a module that all TP ranks enter with the same activations, of which
each computes some heads or inner features, and whose outputs are summed over the ranks. Outside of
regions, norms and residual connections are computed alike on every rank.

`colwise` and `rowwise` mean what they mean in torch's ColwiseParallel and RowwiseParallel.
"""

from dataclasses import dataclass, field

SUPPORTED_MODEL_TYPES = (
    "transformer",
    "gla",
    "delta_net",
    "gated_deltanet",
    "kda",
    "retnet",
    "hgrn2",
)
"""The model types of fla that have a plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardingPlan:
    """How a region is sharded. Names of parameters and attributes are relative to its module."""

    divisible_sizes: tuple[str, ...]
    """Attributes with a number of heads or features, which the TP degree must divide."""
    derived_sizes: tuple[str, ...] = ()
    """Other integer attributes that become a rank's part, by the same division."""
    colwise: tuple[str, ...]
    """Modules and parameters sharded along dimension 0, a linear layer's output features."""
    rowwise: tuple[str, ...]
    """Modules sharded along dimension 1, a linear layer's input features: each rank computes a
    summand of every output."""
    replicated: tuple[str, ...] = ()
    """Modules held in full by every rank; their gradients are summed over the ranks, since each
    rank's stems from its own heads only."""
    overrides: dict[str, str] = field(default_factory=dict)
    """Global functions that the forward calls and that would need the heads of all ranks: name
    there -> name of the replacement in `overrides`."""


_CONVOLUTIONS = ("q_conv1d", "k_conv1d", "v_conv1d")

PLANS: dict[str, ShardingPlan] = {
    "GatedMLP": ShardingPlan(
        divisible_sizes=("intermediate_size",),
        colwise=("gate_proj", "up_proj"),
        rowwise=("down_proj",),
    ),
    "Attention": ShardingPlan(
        divisible_sizes=("num_heads", "num_kv_heads"),
        derived_sizes=("kv_dim",),
        colwise=("q_proj", "k_proj", "v_proj"),
        rowwise=("o_proj",),
        replicated=("q_norm", "k_norm"),
    ),
    "GatedLinearAttention": ShardingPlan(
        divisible_sizes=("num_heads", "num_kv_heads"),
        derived_sizes=("key_dim", "value_dim", "key_dim_per_group", "value_dim_per_group"),
        colwise=("q_proj", "k_proj", "v_proj", "g_proj", "gk_proj.1", *_CONVOLUTIONS),
        rowwise=("o_proj",),
        replicated=("gk_proj.0", "g_norm_swish_gate", "g_norm"),
    ),
    "DeltaNet": ShardingPlan(
        divisible_sizes=("num_heads",),
        derived_sizes=("key_dim", "value_dim"),
        colwise=("q_proj", "k_proj", "v_proj", "b_proj", "g_proj", *_CONVOLUTIONS),
        rowwise=("o_proj",),
        replicated=("o_norm",),
    ),
    "GatedDeltaNet": ShardingPlan(
        divisible_sizes=("num_heads", "num_v_heads"),
        derived_sizes=("key_dim", "value_dim"),
        colwise=(
            *("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj"),
            *("A_log", "dt_bias", *_CONVOLUTIONS),
        ),
        rowwise=("o_proj",),
        replicated=("o_norm",),
    ),
    "KimiDeltaAttention": ShardingPlan(
        divisible_sizes=("num_heads", "num_v_heads"),
        derived_sizes=("key_dim", "value_dim", "gate_dim"),
        colwise=(
            *("q_proj", "k_proj", "v_proj", "f_proj.1", "b_proj", "g_proj.1"),
            *("A_log", "dt_bias", *_CONVOLUTIONS),
        ),
        rowwise=("o_proj",),
        replicated=("f_proj.0", "g_proj.0", "o_norm"),
    ),
    "MultiScaleRetention": ShardingPlan(
        divisible_sizes=("num_heads", "num_kv_heads"),
        derived_sizes=("key_dim", "value_dim", "key_dim_per_group", "value_dim_per_group"),
        colwise=("q_proj", "k_proj", "v_proj", "g_proj", *_CONVOLUTIONS),
        rowwise=("o_proj",),
        replicated=("g_norm_swish_gate", "g_norm"),
        # a head's decay follows from its number among all heads
        overrides={
            "chunk_retention": "ShardedRetention",
            "fused_chunk_retention": "ShardedRetention",
            "parallel_retention": "ShardedRetention",
            "fused_recurrent_retention": "ShardedRetention",
        },
    ),
    "HGRN2Attention": ShardingPlan(
        divisible_sizes=("num_heads",),
        derived_sizes=("forget_dim", "input_dim"),
        colwise=("q_proj", "f_proj", "i_proj", "q_conv1d", "f_conv1d", "i_conv1d", "g_norm"),
        rowwise=("o_proj",),
        # its norm is over the features of all heads
        overrides={"rms_norm_linear": "ShardedNormLinear"},
    ),
}
"""Plans by the name of fla's class of the mixer or MLP."""

SHARDED_OUTSIDE_REGIONS: dict[str, int] = {"model.lower_bounds": 1}
"""Parameters outside of regions that belong to single features of a mixer -> the dimension along
which they are sharded."""
