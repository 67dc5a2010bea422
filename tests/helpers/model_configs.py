"""A tiny model config, and the source of an architecture of the user's own."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from flame_accel.diagnosis.conformance.generation_laws import copy_for_eval_with_noise_on_weights
from flame_accel.models.build import build_model
from flame_accel.models.catalogue import tiny_config

TINY_GLA = {
    "model_type": "gla",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "vocab_size": 40,
}


CUSTOM_MODEL = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from torch import nn

class {name}Config(PreTrainedConfig):
    model_type = "{type}"
    def __init__(self, vocab_size=40, hidden_size=8, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)

class {name}ForCausalLM(PreTrainedModel):
    config_class = {name}Config
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        {extra}
        self.post_init()

AutoConfig.register("{type}", {name}Config)
{register}
"""


REGISTER = "AutoModelForCausalLM.register({name}Config, {name}ForCausalLM)"


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def custom_source(name: str, *, extra: str = "pass", register: str = REGISTER) -> str:
    return CUSTOM_MODEL.format(
        name=name, type=name.lower(), extra=extra, register=register.format(name=name)
    )


def build_small(config: PreTrainedConfig, **changes):
    arguments = {"vocabulary_size": 50, "bos_token_id": 1, "eos_token_id": 2, "seed": 7}
    return build_model(config, **{**arguments, **changes})


def tiny_generator(model_type: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of fla whose layers all matter, in evaluation mode."""
    config = tiny_config(model_type, **changes)
    size: int = config.vocab_size
    return copy_for_eval_with_noise_on_weights(
        build_model(config, vocabulary_size=size, bos_token_id=None, eos_token_id=None, seed=0)
    )
