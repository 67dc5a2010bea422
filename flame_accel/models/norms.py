"""Models with another norm in their blocks and before their head: `model.norm_type`.

Norms inside mixers stay as they are. RMSNorm, fused or not, is what fla's models
have, and their configs say which (`fuse_norm`). For another kind a model becomes one of a type of
its own, such as gla_layernorm, whose classes are derived here and registered with transformers'
auto classes whenever flame_accel is imported. So config.json says what the weights belong to: an
exported model loads with flame_accel or with the code in the export, and fla alone says that it
does not know the type. The norms themselves are exchanged in `block_norms`.
"""

import contextlib
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from flame_accel.config.errors import UsageError, UserError
from flame_accel.models.block_norms import (
    NORM_NAMES,
    derive_norm_variant,
    find_block_norms,
    norm_type_of,
    replace_block_norms_in_place,
)
from flame_accel.models.catalogue import fla_config_classes

NATIVE_NORMS = {"rwkv6": "layernorm", "rwkv7": "layernorm"}
"""What a type has by itself, where that is not rmsnorm."""
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Types of transformers itself; each has RMSNorm of its own, which computes what fla's does."""
WEIGHT_NEEDED = ("mamba", "mamba2", "mamba3", "rodimus")
"""Types whose blocks take the dtype of what they hand on from the weight of a norm."""

_base_types: dict[str, str] = {}


def register_norm_variants_of_fla_and_llama() -> None:
    """Registers the types that have another norm, such as gla_np_layernorm, once.

    A type of transformers whose module is being imported right now is left for the next call.
    """
    for base_type, config_class in {
        **fla_config_classes(),
        **_importable_llama_like_config_classes(),
    }.items():
        if base_type in _base_types:
            continue
        for kind in NORM_NAMES:
            if kind != NATIVE_NORMS.get(base_type, "rmsnorm"):
                _register_norm_variant(config_class, kind)
        _base_types[base_type] = base_type


def _importable_llama_like_config_classes() -> dict[str, type[PreTrainedConfig]]:
    found: dict[str, type[PreTrainedConfig]] = {}
    for name in LLAMA_LIKE:
        # `from transformers import LlamaConfig` imports fla in the middle of Llama's own module
        with contextlib.suppress(AttributeError, ImportError):
            found[name] = CONFIG_MAPPING[name]
    return found


def base_model_type(config: PreTrainedConfig) -> str:
    """The model type as fla or transformers know it: gla, also of a gla_layernorm."""
    return _base_types.get(config.model_type, config.model_type)


def copy_config_with_norm(config: PreTrainedConfig, norm_type: str) -> PreTrainedConfig:
    """Returns a new config of the same model with another type of norm.

    Args:
        config: Config of an fla model or of one like Llama, possibly with another norm already.
        norm_type: layernorm (without a bias, but that of RWKV), np_layernorm (without parameters),
            rmsnorm or fused_rmsnorm.

    Raises:
        UserError: the model does not take that norm.
    """
    register_norm_variants_of_fla_and_llama()
    base_type = base_model_type(config)
    if base_type not in _base_types:
        raise _unsupported_norm_error(
            base_type, norm_type, f"choose one of {', '.join(sorted({*_base_types.values()}))}"
        )
    kind = "rmsnorm" if norm_type == "fused_rmsnorm" else norm_type
    native = kind == NATIVE_NORMS.get(base_type, "rmsnorm")
    if not native and getattr(config, "attnres_block_size", None) is not None:
        raise _unsupported_norm_error(
            f"{base_type} with attnres_block_size", norm_type, "leave that field out"
        )
    if kind == "np_layernorm" and base_type in WEIGHT_NEEDED:
        raise _unsupported_norm_error(base_type, norm_type, "choose layernorm or fused_rmsnorm")
    fields = config.to_dict()
    del fields["model_type"]
    chosen = CONFIG_MAPPING[base_type if native else f"{base_type}_{kind}"].from_dict(fields)
    if kind == "rmsnorm" and hasattr(chosen, "fuse_norm"):
        chosen.fuse_norm = norm_type == "fused_rmsnorm"
    return chosen


def fuse_llama_norms_and_check_norm_type(model: PreTrainedModel, norm_type: str) -> None:
    """Puts fused norms into a model like Llama; checks the norms of any other model.

    Call it on a model built from `copy_config_with_norm`. Fused norms compute the same under the
    same names, and the config stays the same.

    Raises:
        UserError: its blocks are written for fla's fused RMSNorm only.
    """
    if base_model_type(model.config) in LLAMA_LIKE and norm_type == "fused_rmsnorm":
        replace_block_norms_in_place(model, "rmsnorm", fused=True)
    for parent, name in find_block_norms(model):
        if norm_type_of(getattr(parent, name)) != norm_type:
            raise _unsupported_norm_error(
                model.config.model_type, norm_type, "choose fused_rmsnorm or layernorm"
            )


def _register_norm_variant(config_class: type[PreTrainedConfig], norm_kind: str) -> None:
    """Derives the classes of a type with another norm, and makes them known to transformers."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    derived_config, derived_model = derive_norm_variant(
        config_class, model_class, norm_kind, module_name=__name__
    )
    AutoConfig.register(derived_config.model_type, derived_config)
    AutoModelForCausalLM.register(derived_config, derived_model)
    _base_types[derived_config.model_type] = config_class.model_type


def _unsupported_norm_error(model: str, norm_type: str, remedy: str) -> UserError:
    return UsageError(
        f"the norms of {model} cannot be {norm_type}",
        where="model.norm_type",
        remedy=f"{remedy}, or remove the option",
    )
