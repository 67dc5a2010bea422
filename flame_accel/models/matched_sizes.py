"""Configurations of other architectures with the sizes of a given one, so that they compare.

Width, layers, heads, MLP, short convolutions and the shape of the recurrent state are taken over,
and for softmax attention whether queries and keys are normalized; everything else has the defaults
of its architecture. Parameters still differ a little, since gates
and output projections do.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from flame_accel.config.errors import UsageError
from flame_accel.config.suggestions import nearest_text
from flame_accel.files import write_text_atomically
from flame_accel.models.catalogue import fla_config_classes

SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "hidden_ratio",
    "intermediate_size",
    "hidden_act",
    "use_short_conv",
    "conv_size",
    "norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "max_position_embeddings",
    "fuse_cross_entropy",
)
"""Fields that mean the same in every architecture that has them."""

ATTENTION_TYPES = frozenset(
    {
        *("bitnet", "deltaformer", "forgetting_transformer", "parallax", "path_attn"),
        *("stickbreaking_attn", "transformer", "wall_transformer"),
    }
)
"""Architectures that keep all keys and values: they have no state to match."""


class StateShape(NamedTuple):
    """Shape of a layer's recurrent state: a matrix for each head."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        """Numbers in the states of all heads."""
        return self.heads * self.key_dim * self.value_dim


def state_shape(config: PreTrainedConfig) -> StateShape | None:
    """The state of a layer; None for softmax attention, and where the fields do not say it."""
    fields: Mapping[str, Any] = config.to_dict()
    width = fields["hidden_size"]
    heads: Any = fields.get("num_heads")
    # slots are another kind of state
    if "num_slots" in fields:
        return None
    if {"expand_k", "expand_v", "num_heads"} <= fields.keys():
        key_width, value_width = width * fields["expand_k"], width * fields["expand_v"]
        return StateShape(heads, round(key_width / heads), round(value_width / heads))
    if {"head_dim", "expand_v", "num_heads"} <= fields.keys():
        value_heads = fields.get("num_v_heads") or heads
        key_dim = fields["head_dim"]
        return StateShape(value_heads, key_dim, round(key_dim * fields["expand_v"]))
    if {"state_size", "expand", "head_dim"} <= fields.keys():
        head_dim = fields["head_dim"]
        heads = round(fields["expand"] * width / head_dim)
        return StateShape(heads, fields["state_size"], head_dim)
    if config.model_type == "hgrn2":
        ratio = fields["expand_ratio"]
        return StateShape(width // ratio, ratio, ratio)
    if config.model_type == "rwkv7":
        head_dim = fields["head_dim"]
        return StateShape(width // head_dim, head_dim, head_dim)
    return None


def matched_config(model_type: str, like: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration of an architecture of fla with the sizes of another one.

    Args:
        model_type: one of `fla_config_classes`.
        like: whose sizes; of its own architecture it is returned as it is. Softmax attention has no
            state: then heads are as wide as its own, for keys and values.

    Raises:
        UsageError: fla has no such architecture, or its state cannot have that shape.
    """
    if model_type == like.model_type:
        return like
    config_class = fla_config_classes().get(model_type)
    if config_class is None:
        names = sorted(fla_config_classes())
        near = nearest_text(model_type, names)
        raise UsageError(
            f"{model_type!r} is neither a preset, a file nor an architecture of fla",
            where="--models",
            remedy=(f"did you mean {near}? " if near else "")
            + f"Name some of {', '.join(names)}, presets or JSON files",
        )
    given = like.to_dict()
    heads = given.get("num_heads")
    shape = state_shape(like)
    if shape is None:
        if heads is None or like.model_type not in ATTENTION_TYPES:
            raise _unmatchable_error(like.model_type, model_type)
        shape = StateShape(heads, like.hidden_size // heads, like.hidden_size // heads)
    known = {
        name
        for base in config_class.__mro__
        if issubclass(base, PreTrainedConfig) and base is not PreTrainedConfig
        for name in inspect.signature(base).parameters
    }
    fields = {name: given[name] for name in SHARED_FIELDS if name in known and name in given}
    width = like.hidden_size
    sizes = {
        "num_heads": shape.heads,
        "expand_k": shape.heads * shape.key_dim / width,
        "expand_v": shape.heads * shape.value_dim / width
        if "expand_k" in known
        else shape.value_dim / shape.key_dim,
        "head_dim": shape.value_dim if "state_size" in known else shape.key_dim,
        "state_size": shape.key_dim,
        "expand": shape.heads * shape.value_dim / width,
    }
    if model_type == "hgrn2":
        sizes["expand_ratio"] = shape.key_dim
    fields |= {name: value for name, value in sizes.items() if name in known}
    # as a norm of any kind; DeltaNet's is its own
    if model_type in ATTENTION_TYPES and "qk_norm" in known:
        fields["qk_norm"] = bool(given.get("qk_norm"))
    config = config_class(**fields)
    reached = state_shape(config)
    same = reached.elements == shape.elements if reached else model_type in ATTENTION_TYPES
    if not same:
        raise _unmatchable_error(like.model_type, model_type)
    return config


def write_matched_config(model_type: str, like: PreTrainedConfig, file: Path) -> None:
    """Writes `matched_config` as a file that `model.config` can name."""
    fields = matched_config(model_type, like).to_dict()
    for name in ("transformers_version", "_name_or_path", "architectures"):
        fields.pop(name, None)
    write_text_atomically(file, json.dumps(fields, indent=2) + "\n")


def _unmatchable_error(given_type: str, model_type: str) -> UsageError:
    return UsageError(
        f"{model_type} cannot have a state of the same size as the {given_type} of the recipe",
        where="--models",
        remedy="write a JSON config for it and name that file",
    )
