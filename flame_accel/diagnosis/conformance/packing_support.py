"""Which architectures keep packed documents apart. `data` packs them."""

from transformers import PreTrainedConfig

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
from flame_accel.kernels.install import KernelKind
from flame_accel.models.norms import base_model_type

DOCUMENTS_APART = "keeps documents apart"
"""The law in `laws` that nothing of a document reaches another in the same row."""


def check_no_known_packing_issue(config: PreTrainedConfig, *, active_kernels: KernelKind) -> None:
    """Checks that a model keeps the documents of a row apart, for `training.varlen`.

    Args:
        config: Config of the model.
        active_kernels: Active kernels, "torch" or "triton", as `kernels.install` returns them.

    Raises:
        UserError: The model type is known to break the law with these kernels.
    """
    reason = known_issue_reasons_by_law(
        base_model_type(config), {"torch": "cpu", "triton": "cuda"}[active_kernels]
    ).get(DOCUMENTS_APART)
    if reason is not None:
        raise UserError(
            f"{config.model_type} does not keep packed documents apart: {reason}",
            where="training.varlen",
            remedy="train it without --training.varlen",
        )
