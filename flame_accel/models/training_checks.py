"""Checks that a built model computes, in training, what the options and the loss mean.

Options alone are checked in `config`, machines and known defects of models in `diagnosis`.
"""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flame_accel.config.errors import UserError

UNUSED_ROWS = 2
"""Rows that some tables of positions have in addition to the positions (OPT, BioGPT)."""


def has_learned_position_table(model: PreTrainedModel) -> bool:
    """Whether a model looks positions up in an embedding of its own."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return isinstance(positions, int) and any(
        isinstance(module, nn.Embedding)
        and module is not model.get_input_embeddings()
        and positions <= module.num_embeddings <= positions + UNUSED_ROWS
        for module in model.modules()
    )


def check_learned_positions_suffice(model: PreTrainedModel, trained_length: int) -> None:
    """Checks that a model with learned positions has one for each token.

    Args:
        model: Any.
        trained_length: Number of tokens per document or row in training.

    Raises:
        UserError: It has fewer.
    """
    if not has_learned_position_table(model):
        return
    positions: int = model.config.max_position_embeddings
    if positions < trained_length:
        raise UserError(
            f"{model.config.model_type} has {positions} learned positions, and texts of "
            f"{trained_length} tokens are to be trained on",
            where="training.seq_len",
            remedy=f"--training.seq_len {positions}, or longer rows of documents that start at 0 "
            f"again: --training.varlen --training.context_len {positions}",
        )


def check_no_router_loss(config: PreTrainedConfig) -> None:
    """Checks that a model's loss is that of its targets alone.

    Raises:
        UserError: transformers adds the balance of a router, which is no sum over targets: it would
            be weighted by the number of ranks and micro-batches.
    """
    if getattr(config, "output_router_logits", False):
        raise UserError(
            f"with output_router_logits {config.model_type} adds the balance of its experts to the "
            "loss, which is not supported",
            where="model.config",
            remedy='set "output_router_logits": false in the config',
        )
