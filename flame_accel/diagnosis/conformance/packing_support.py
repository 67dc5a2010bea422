"""Which models keep packed documents apart: known of fla's, tried out of others. `data` packs."""

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
from flame_accel.diagnosis.conformance.laws import run_law_checks
from flame_accel.diagnosis.small_model_trial import shrink_layers_and_vocabulary_or_tiny_to_fit
from flame_accel.kernels.install import KernelKind
from flame_accel.kernels.tuning import disable_tuning_then_forget_choices_made
from flame_accel.models.catalogue import fla_config_classes
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


def check_keeps_documents_apart_unless_fla_model(config: PreTrainedConfig, device: str) -> None:
    """Checks by running it that a model that is not fla's keeps packed documents apart.

    For fla's models it is known (`known_issues`). Random states are left alone. The
    model is trained for some steps first: weights that start at 0 would hide what flows through
    them.

    Args:
        config: Config of the model to train with packed documents.
        device: "cpu" or "cuda".

    Raises:
        UserError: It lets something of a document reach another one.
    """
    if base_model_type(config) in fla_config_classes():
        return
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), disable_tuning_then_forget_choices_made():
        small = shrink_layers_and_vocabulary_or_tiny_to_fit(config, device)
        *_, finding = run_law_checks(small, device, ["trains", DOCUMENTS_APART])
    if not finding.holds:
        raise UserError(
            f"{config.model_type} does not keep packed documents apart: {finding.reason}",
            where="training.varlen",
            remedy="train it without --training.varlen; docs/models.md lists the models that can"
            if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            else "train it without --training.varlen, or let its layers start afresh at the "
            "boundaries in cu_seqlens",
        )
