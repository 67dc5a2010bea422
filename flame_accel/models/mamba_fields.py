"""Field names of Mamba's and Mamba2's configs: fla's and transformers'.

Both have a model of these types with the same weights, and their configs name some fields
differently: `norm_eps` is `layer_norm_epsilon` there. A field that a class does not know is ignored
without a word, so that the same weights compute other logits. fla's config classes are made to
read both names and to write both, so that each library finds its own.
"""

import functools
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

FLA_NAMES: dict[str, dict[str, str]] = {
    "mamba": {
        "layer_norm_epsilon": "norm_eps",
        "time_step_rank": "dt_rank",
        "time_step_scale": "dt_scale",
        "time_step_min": "dt_min",
        "time_step_max": "dt_max",
        "time_step_init_scheme": "dt_init_scheme",
        "time_step_floor": "dt_init_floor",
    },
    "mamba2": {
        "layer_norm_epsilon": "norm_eps",
        "time_step_limit": "dt_limit",
        "time_step_min": "dt_min",
        "time_step_max": "dt_max",
        "time_step_floor": "dt_init_floor",
    },
}
"""By model type: transformers' name of a field -> fla's."""
AUTO = "auto"
"""Value of a field that stands for a rule, whatever its name."""


def make_mamba_configs_accept_transformers_fields() -> None:
    """Makes fla's config classes read and write transformers' names, too. Once is enough."""
    from fla.models import Mamba2Config, MambaConfig

    for config_class in (MambaConfig, Mamba2Config):
        if not hasattr(config_class.__init__, "reads_transformers_names"):
            _patch_config_class_to_accept_both_names(
                config_class, FLA_NAMES[config_class.model_type]
            )


def _patch_config_class_to_accept_both_names(
    config_class: type[PreTrainedConfig], fla_name_by_transformers_name: Mapping[str, str]
) -> None:
    init_fla_config: Any = config_class.__init__
    fla_to_dict = config_class.to_dict

    @functools.wraps(init_fla_config)
    def init_renaming_to_fla_names(self: PreTrainedConfig, *arguments: Any, **fields: Any) -> None:
        init_fla_config(
            self, *arguments, **rename_fields_to_fla_names(fields, fla_name_by_transformers_name)
        )

    @functools.wraps(fla_to_dict)
    def to_dict_with_both_names(self: PreTrainedConfig) -> dict[str, Any]:
        fields = fla_to_dict(self)
        return fields | {
            theirs: fields[ours] for theirs, ours in fla_name_by_transformers_name.items()
        }

    marked: Any = init_renaming_to_fla_names
    marked.reads_transformers_names = True
    config_class.__init__ = marked
    config_class.to_dict = to_dict_with_both_names


def rename_fields_to_fla_names(
    fields: Mapping[str, Any], fla_name_by_transformers_name: Mapping[str, str]
) -> dict[str, Any]:
    """The fields of a config under fla's names alone.

    Raises:
        ValueError: A field has two values, one under each name.
    """
    renamed = {
        name: value for name, value in fields.items() if name not in fla_name_by_transformers_name
    }
    for theirs in fla_name_by_transformers_name.keys() & fields.keys():
        ours, value = fla_name_by_transformers_name[theirs], fields[theirs]
        if renamed.get(ours, AUTO) == AUTO:
            renamed[ours] = value
        elif value != AUTO and _values_differ(value, renamed[ours]):
            raise ValueError(
                f"{ours} = {renamed[ours]} and {theirs} = {value} name the same field; remove one"
            )
    return renamed


def _values_differ(value: object, other: object) -> bool:
    # JSON has lists where Python has tuples
    return value != other and not (
        isinstance(value, (list, tuple)) and isinstance(other, (list, tuple))
        and list(value) == list(other)
    )  # fmt: skip
