"""The model side of a run: which architectures exist, how one is built, grouped and counted.

Nothing here trains, reads data or touches an Accelerator; what runs the operators lives in
`kernels/`.
"""

from flame_accel.models.build import (
    build_model,
    load_model_config,
    padded_or_stored_embedding_rows_or_raise,
)
from flame_accel.models.flops import device_peak_flops, train_flops_per_token
from flame_accel.models.parameter_groups import (
    TotalAndNonEmbeddingCount,
    count_parameters,
    fp32_parameter_names,
    parameter_groups,
)
from flame_accel.models.registration import register_models

__all__ = [
    "TotalAndNonEmbeddingCount",
    "build_model",
    "count_parameters",
    "device_peak_flops",
    "fp32_parameter_names",
    "load_model_config",
    "padded_or_stored_embedding_rows_or_raise",
    "parameter_groups",
    "register_models",
    "train_flops_per_token",
]
