"""Exchanges the norms of a model's blocks and before its head for norms of another kind.

An export of such a model contains this module's text, so it imports nothing of flame_accel. Which
model takes which norm is in `norms`.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

try:
    from fla.modules import LayerNorm, RMSNorm
except ImportError:
    # transformers checks the imports outside of `try` in the code of an export, and would name a
    # package that does not exist; the code that comes before this text names the right one
    raise

NORM_NAMES = {"layernorm": "LayerNorm", "np_layernorm": "NPLayerNorm", "rmsnorm": "RMSNorm"}
FUSED_NORMS = (RMSNorm, LayerNorm)
TORCH_NORMS = (nn.RMSNorm, nn.LayerNorm)


class NormPlace(NamedTuple):
    """The attribute of a module that holds a norm."""

    parent: nn.Module
    attribute_name: str


def find_block_norms(model: PreTrainedModel) -> Iterator[NormPlace]:
    """Yields the places of the norms of blocks and of the final norm.

    Norms inside a block's mixer or MLP are not included.
    """
    blocks = set(model._no_split_modules or ())
    inside: set[nn.Module] = set()
    for module in model.modules():
        if type(module).__name__ in blocks:
            inside.update(part for child in module.children() for part in child.modules())
    for module in model.modules():
        if module not in inside:
            for name, child in module.named_children():
                # those of attention residuals are read by a kernel that knows RMSNorm only
                if norm_type_of(child) is not None and not name.endswith("res_norm"):
                    yield NormPlace(module, name)


def norm_type_of(norm: nn.Module) -> str | None:
    """The `model.norm_type` of a module; None if it is not a norm of one of these types."""
    if isinstance(norm, (LayerNorm, nn.LayerNorm)):
        return "layernorm" if norm.elementwise_affine else "np_layernorm"
    if isinstance(norm, RMSNorm):
        return "fused_rmsnorm"
    return "rmsnorm" if type(norm).__name__.endswith("RMSNorm") else None


def replace_block_norms_in_place(
    model: PreTrainedModel, norm_kind: str, *, fused: bool | None = None
) -> None:
    """Puts norms of a kind in the place of a model's, under the same names, with fresh weights.

    Args:
        model: any of a registered type.
        norm_kind: a key of `NORM_NAMES`.
        fused: whether fla's fused modules take the places; None: where they are already.
    """
    for parent, name in [*find_block_norms(model)]:
        old: Any = getattr(parent, name)
        options: dict[str, Any] = {
            "eps": old.variance_epsilon if hasattr(old, "variance_epsilon") else old.eps,
            "dtype": old.weight.dtype,
        }
        rms, mean = (RMSNorm, LayerNorm) if fused or isinstance(old, FUSED_NORMS) else TORCH_NORMS
        if norm_kind != "rmsnorm":
            options |= {"elementwise_affine": norm_kind == "layernorm", "bias": False}
        new = (rms if norm_kind == "rmsnorm" else mean)(old.weight.shape[0], **options)
        setattr(parent, name, new)


class NormVariant(NamedTuple):
    """The classes of a model type that has another norm."""

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]


def derive_norm_variant(
    config_class: type[PreTrainedConfig],
    model_class: type[PreTrainedModel],
    norm_kind: str,
    *,
    module_name: str,
) -> NormVariant:
    """Derives the classes of a model type with norms of another kind, such as gla_np_layernorm.

    Args:
        config_class: Config class of the model with its own norms.
        model_class: Its model class.
        norm_kind: A key of `NORM_NAMES`.
        module_name: Name of the module that the new classes belong to.
    """

    @functools.wraps(model_class.__init__)
    def init_model(self: PreTrainedModel, config: PreTrainedConfig, **options: Any) -> None:
        model_class.__init__(self, config, **options)
        replace_block_norms_in_place(self, norm_kind)

    prefix, model_type = NORM_NAMES[norm_kind], f"{config_class.model_type}_{norm_kind}"
    place = {
        "__module__": module_name,
        "__doc__": f"{model_type}: {config_class.model_type}, {prefix}.",
    }
    derived_config: Any = type(
        f"{prefix}{config_class.__name__}",
        (config_class,),
        # a class without an __init__ would get that of a dataclass from transformers
        {**place, "model_type": model_type, "__init__": config_class.__init__},
    )
    derived_model: Any = type(
        f"{prefix}{model_class.__name__}",
        (model_class,),
        {**place, "config_class": derived_config, "__init__": init_model},
    )
    return NormVariant(derived_config, derived_model)
