"""What a model is made from, as a run records it when it starts: datasets and weights, no paths."""

from pathlib import Path, PurePath
from typing import TypedDict

from flame_accel import data
from flame_accel.config import Config
from flame_accel.config.secrets import mask_secrets
from flame_accel.data.sources.dataset_descriptions import DatasetDescription


class StartingWeights(TypedDict):
    """The weights that a run started from."""

    name: str
    """Name on the Hub, with the revision if one was asked for, or the last part of the path."""
    on_hub: bool


class ModelSources(TypedDict):
    """What a model is made from, JSON-able."""

    training_data: list[DatasetDescription]
    evaluation_data: DatasetDescription | None
    starting_weights: StartingWeights | None
    """None: they were drawn at random."""


def describe_model_sources(config: Config, run_data: data.RunData) -> ModelSources:
    """What the model of a run is made from; called once its data and weights are loaded.

    Args:
        config: The options of the run.
        run_data: Its data.
    """
    weights = config.checkpoint.initial_load_path
    described: StartingWeights | None = None
    if weights is not None:
        on_hub = not Path(weights).exists()
        name = mask_secrets(weights)
        described = {"name": name if on_hub else PurePath(name).name, "on_hub": on_hub}
    return {
        "training_data": data.describe_training_data(config.training, run_data),
        "evaluation_data": data.describe_evaluation_data(
            config.training, config.evaluation, run_data
        ),
        "starting_weights": described,
    }
