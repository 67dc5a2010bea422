"""What the fields of a model config mean: which ones decide what a trained model computes.

A config also records who wrote it, how weights were drawn, and which of several equal
implementations runs. Comparing a model with the weights of a checkpoint is done in
`checkpoint/identity`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from flame_accel.models.catalogue import fla_config_classes
from flame_accel.models.norms import base_model_type

INITIALIZATION_FIELDS = frozenset(
    {
        "A_init_range",
        "a_log_init_lower",
        "conv_init",
        "dt_init_floor",
        "dt_init_scheme",
        "dt_max",
        "dt_min",
        "dt_scale",
        "gate_init_bias",
        "initializer_range",
        "log_atk_scale_init",
        "rescale_prenorm_residual",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_scale",
    }
)
"""Fields of fla's configs that only say how initial weights are drawn."""
IMPLEMENTATION_FIELDS = frozenset(
    {
        "fuse_cross_entropy",
        "fuse_linear_cross_entropy",
        "fuse_swiglu",
        "use_cache",
        "use_l2warp",
    }
)
"""Fields of fla's configs that choose between implementations, or act on the loss alone."""
NEVER_DECISIVE = frozenset({"initializer_range", "use_cache"})
"""Those of both that mean the same in every model; `time_step_min` clamps in Zamba2's forward."""
TOKEN_FIELDS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})
"""Fields that repeat what the tokenizer says."""
RECORD_FIELDS = frozenset({*PreTrainedConfig().to_dict(), "auto_map", "torch_dtype"}) - {
    "model_type"
}
"""Fields of every config that say who wrote it, in which dtype, and what calls return."""
FORMER_RECORD_FIELDS = frozenset(
    {
        "_attn_implementation_autoset",
        "add_cross_attention",
        "cross_attention_hidden_size",
        "finetuning_task",
        "is_decoder",
        "prefix",
        "pruned_heads",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "torchscript",
        "use_bfloat16",
    }
)
"""Fields that earlier versions of transformers wrote into every config."""


class FieldDifference(NamedTuple):
    """A field in which two model configs differ; None where a config does not have it."""

    name: str
    """Name of the field; dots separate the levels of nested fields."""
    stored: Any
    """Its value in the config that was read."""
    built: Any
    """Its value in the config of the model in memory."""


def find_decisive_differences(
    stored: Mapping[str, Any], built: PreTrainedConfig
) -> list[FieldDifference]:
    """The fields in which two configs mean different models, in the order of the built config.

    `vocab_size` is one of them; `max_position_embeddings` is not, unless rotary embeddings are
    scaled by it: otherwise it is a size of a cache, or learned positions whose shapes differ.
    Fields that the config class does not know count too: a model that it was not written for, or
    the code of the user's own, may read them.

    Args:
        stored: The content of a config.json, as a checkpoint or an export has it.
        built: Config of the model in memory.
    """
    if stored.get("model_type") != built.model_type:
        return [FieldDifference("model_type", stored.get("model_type"), built.model_type)]
    config_class = type(built)
    # both pass through the class, which fills in defaults and renames old fields
    before = _flatten_to_dotted_names(config_class.from_dict(dict(stored)).to_dict())
    after = _flatten_to_dotted_names(config_class.from_dict(built.to_dict()).to_dict())
    ignored = {*NEVER_DECISIVE, *TOKEN_FIELDS, *RECORD_FIELDS}
    ignored |= FORMER_RECORD_FIELDS - config_class().to_dict().keys()
    if base_model_type(built) in fla_config_classes():
        ignored |= INITIALIZATION_FIELDS | IMPLEMENTATION_FIELDS
    if not _scales_rotary_embeddings(after):
        ignored.add("max_position_embeddings")
    return [
        FieldDifference(name, before.get(name), after.get(name))
        for name in [*after, *(before.keys() - after.keys())]
        if name.partition(".")[0] not in ignored and before.get(name) != after.get(name)
    ]


def _scales_rotary_embeddings(dotted_fields: Mapping[str, Any]) -> bool:
    kinds = (
        dotted_fields.get(f"{field}.rope_type") for field in ("rope_parameters", "rope_scaling")
    )
    return any(kind not in (None, "default") for kind in kinds)


def _flatten_to_dotted_names(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names; tuples as lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten_to_dotted_names(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
