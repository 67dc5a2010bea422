"""What a run records of the weights that it starts from: a name, and no path of this machine."""

from typing import Any

import pytest

from flame_accel import data
from flame_accel.config import parse
from flame_accel.hub.model_sources import describe_model_sources

REQUIRED = ("--model.config=gla_1M", "--model.tokenizer_path=byte", "--training.dataset=x/y")


@pytest.mark.parametrize(
    ("name", "described"),
    [
        (None, None),
        ("owner/name@v1", {"name": "owner/name@v1", "on_hub": True}),
        ("FOLDER", {"name": "weights", "on_hub": False}),
    ],
)
def test_starting_weights_are_named_as_anybody_may_read(tmp_path, monkeypatch, name, described):
    folder = tmp_path / "secret place/weights"
    folder.mkdir(parents=True)
    for function in ("describe_training_data", "describe_evaluation_data"):
        monkeypatch.setattr(data, function, lambda *_: None)
    path = str(folder) if name == "FOLDER" else name
    flags = [] if path is None else [f"--checkpoint.initial_load_path={path}"]
    run_data: Any = None
    sources = describe_model_sources(parse([*REQUIRED, *flags]), run_data)
    assert sources["starting_weights"] == described
