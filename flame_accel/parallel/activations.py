"""Activations that are recomputed in the backward pass instead of kept."""

from transformers import PreTrainedModel

from flame_accel.config import ActivationCheckpointConfig


def checkpoint_activations(model: PreTrainedModel, config: ActivationCheckpointConfig) -> None:
    """Makes the blocks of a model recompute their activations, in place."""
