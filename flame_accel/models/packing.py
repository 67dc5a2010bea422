"""Which architectures keep packed documents apart. How they are packed is decided in `data`."""

from transformers import PreTrainedConfig

from flame_accel.config.errors import UserError

IGNORES_CU_SEQLENS = frozenset({"mamba", "mamba2", "samba"})
"""Model types of fla 0.6.0 with a mixer whose forward never looks at `cu_seqlens`.

A packed row is one long document to them: states run on from one document into the next.
"""


def refuse_packing(config: PreTrainedConfig) -> None:
    """Refuses `training.varlen` for a model that would mix the documents of a row.

    Raises:
        UserError: The model type is one of `IGNORES_CU_SEQLENS`.
    """
    if config.model_type in IGNORES_CU_SEQLENS:
        raise UserError(
            f"{config.model_type} does not keep packed documents apart: fla's layer ignores "
            "cu_seqlens, so that states would run on from one document into the next",
            where="training.varlen",
            remedy="train it without --training.varlen",
        )
