"""Parameter groups for weight decay, parameters that stay in float32, and parameter counts.

The optimizer lives in `training/`, the precision policy in `parallel/`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from flame_accel.models.packed_inputs import is_transformers_model

DECAY_PARAMETERS = ("A_log", "dt_bias")
"""Names that transformers gives to what goes through the exponentials of a decay."""


ParameterGroup = dict[str, Any]
"""A group of a torch optimizer: `params`, and hyperparameters that hold for them."""


class TotalAndNonEmbeddingCount(NamedTuple):
    """Number of parameters of a model; a tied one counts once."""

    total: int
    """All of them, trainable or not."""
    without_embeddings: int
    """All but the input embedding; a `lm_head` counts unless it is tied to it."""

    def __str__(self) -> str:
        return f"{self.total:,} parameters, {self.without_embeddings:,} without embeddings"


def count_parameters(model: PreTrainedModel) -> TotalAndNonEmbeddingCount:
    """Counts the parameters of a model; they may be on any device, meta included."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(parameter.numel() for parameter in model.get_input_embeddings().parameters())
    return TotalAndNonEmbeddingCount(total, total - embedding)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Splits the trainable parameters into those with weight decay and those without.

    Matrices have it, including embeddings. These do not: norms, biases, parameters that fla marks
    `_no_weight_decay` (A_log, dt_bias, D, ...), and vectors, such as RWKV's token-shift mixes.

    Args:
        model: The model before it is wrapped or sharded, which may lose fla's marks.
        weight_decay: Weight decay of the first group; that of the second is 0.

    Returns:
        Groups for a torch optimizer, `{"params": [...], "weight_decay": ...}`: the decayed one,
        then the other; none is empty. Inside them the order of `named_parameters`. Every trainable
        parameter is in exactly one, a tied one once.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module, name, parameter in _each_parameter_once_with_owner(model):
        if parameter.requires_grad:
            (
                decayed if _is_decayed_matrix_or_embedding(module, name, parameter) else exempt
            ).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class _OwnedParameter(NamedTuple):
    module: nn.Module
    name_in_module: str
    parameter: nn.Parameter


def _each_parameter_once_with_owner(model: nn.Module) -> Iterator[_OwnedParameter]:
    """Yields each parameter once, with the first module that holds it."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield _OwnedParameter(module, name, parameter)


def _is_decayed_matrix_or_embedding(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if getattr(parameter, "_no_weight_decay", False) or name.endswith("bias"):
        return False
    if "norm" in type(module).__name__.lower():
        return False
    # a projection to one feature is still a matrix, a bare parameter of shape [1, 1, D] is a vector
    return (parameter.ndim if name == "weight" else parameter.squeeze().ndim) >= 2


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def fp32_parameter_names(model: PreTrainedModel) -> list[str]:
    """Names the parameters that fla computes with in float32, whatever the dtype of the rest.

    fla has no mark for them. They are those that are float32 even when the model is built in
    bfloat16, because their layer asks for it (A_log, ...), and those that it marks
    `_no_weight_decay` (dt_bias, ...): what goes through the exponentials of a decay. Left out are
    norms, whose weight multiplies once and sets the dtype of what Mamba2's blocks pass on, and the
    skip connection `D`, which is no decay and sets the dtype of inputs of linear layers. In
    transformers' own models, which have no marks either, decays go by their names.

    Args:
        model: The model before it is wrapped or sharded.

    Returns:
        Names as in `named_parameters`, in its order.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]), _default_dtype(torch.bfloat16):
        reference = type(model)(copy.deepcopy(model.config))
    kept = {name for name, value in reference.named_parameters() if value.dtype == torch.float32}
    if is_transformers_model(type(model)):
        kept |= {
            name
            for name, _ in model.named_parameters()
            if name.rpartition(".")[2] in DECAY_PARAMETERS
        }
    norms = {
        parameter
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if (name in kept or getattr(parameter, "_no_weight_decay", False))
        and parameter not in norms
        and not name.endswith(".D")
    ]
