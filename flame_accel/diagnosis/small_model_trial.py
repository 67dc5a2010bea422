"""Runs a small version of a model, with fla's Triton kernels and with the PyTorch ones.

The small version keeps the width, and with it the sizes of heads for which kernels are compiled;
it has two layers and a small vocabulary. Laws of models that need no second kind of kernels live in
`diagnosis/conformance/laws.py`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from flame_accel import kernels
from flame_accel.diagnosis.conformance.laws import (
    build_model_on_device,
    describe_exception_with_place,
)
from flame_accel.diagnosis.conformance.measures import (
    draw_same_token_ids_every_time,
    relative_error,
)
from flame_accel.kernels.install import KernelKind
from flame_accel.kernels.tuning import (
    Tuner,
    detect_gpu_name_and_capability,
    install_autotune_hook,
)
from flame_accel.models import count_parameters
from flame_accel.models.catalogue import VOCABULARY_SIZE, fla_config_classes, tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.transformers_catalogue import (
    MAX_POSITIONS,
    tiny_transformers_config,
    transformers_only_decoder_config_classes,
)

MAX_PARAMETERS = {"cpu": 40_000_000, "cuda": 1_000_000_000}
"""A small version that has more is replaced by the tiny model of the same type."""
POSITION_FIELDS = frozenset({"max_position_embeddings", "n_positions"})
"""Fields with the number of learned positions, in which the texts of the trial have to fit."""
ROWS, ROW_LENGTH = 2, 200

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""How far Triton kernels may be from PyTorch kernels: norm of the difference over norm.

fla multiplies fp32 matrices in tf32, whose rounding is 5e-4; that of bf16 is 4e-3. Two layers and
the way back multiply it.
"""


class KernelComparison(NamedTuple):
    """Logits or gradients of one precision under both kinds of kernels."""

    quantity: str
    """Logits or gradients, and the precision."""
    error: float
    """Relative; infinite where one of them is not finite."""
    tolerance: float
    trains: bool
    """Whether training computes in this precision."""
    reason: str = ""
    """Why there is nothing to compare."""

    @property
    def holds(self) -> bool:
        """Whether they agree."""
        return not self.reason and self.error <= self.tolerance


def count_config_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of a config's model; no memory is taken for them."""
    with torch.device("meta"):
        return count_parameters(instantiate_on_default_device(config)).total


def shrink_layers_and_vocabulary_or_tiny_to_fit(
    config: PreTrainedConfig, device: str
) -> PreTrainedConfig:
    """The config with two layers and a small vocabulary, or that of the tiny model of its type.

    Hybrids get one layer of each kind.

    Args:
        config: Config of the model to train; it is not changed.
        device: that has to carry the small one, "cpu" or "cuda".
    """
    fields = config.to_dict()
    # an architecture of the user's own may call it otherwise
    layers = fields.get("num_hidden_layers")
    kept = _indices_of_one_layer_of_each_kind(fields)
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == layers:
            fields[name] = [value[layer] for layer in kept]
        elif isinstance(value, dict) and value.get("layers"):
            fields[name] = {**value, "layers": [1]}
        elif re.fullmatch(r"num_\w+_layers", name):
            fields[name] = 1
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"num_hidden_layers": len(kept), "vocab_size": VOCABULARY_SIZE}
    sizes |= {name: max(fields[name], MAX_POSITIONS) for name in POSITION_FIELDS & fields.keys()}
    small = type(config).from_dict({**fields, **special, **sizes})
    if count_config_parameters(small) > MAX_PARAMETERS[device]:
        if config.model_type in fla_config_classes():
            return tiny_config(config.model_type)
        if config.model_type in transformers_only_decoder_config_classes():
            return tiny_transformers_config(config.model_type)
    return small


def _indices_of_one_layer_of_each_kind(fields: Mapping[str, Any]) -> list[int]:
    """Indices of the layers to keep: the first of each of `layer_types`, at least two layers."""
    kinds = fields.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != fields.get("num_hidden_layers"):
        return [0, 1]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    return first if len(first) > 1 else [0, 1]


def install_kernels_without_tuning(kind: KernelKind) -> None:
    """Installs kernels to see what they compute, not how fast.

    Triton kernels that are not tuned yet take the nearest configuration: tuning all kernels of a
    model takes minutes.
    """
    if kernels.install(kind) == "triton":
        install_autotune_hook(Tuner(detect_gpu_name_and_capability(), tunes=False))


class LogitsAndGradients(NamedTuple):
    """What a model computes on given tokens."""

    logits: Tensor
    """[B, T, V]."""
    gradients: Tensor
    """Of the loss over all parameters, one after the other: [number of parameters]."""


def compare_triton_with_torch(config: PreTrainedConfig, device: str) -> Iterator[KernelComparison]:
    """Logits and gradients of Triton kernels against those of PyTorch kernels, on the same inputs.

    Args:
        config: Config of a small model.
        device: "cuda".
    """
    for dtype, tolerance in TOLERANCE.items():
        precision, trains = str(dtype).removeprefix("torch."), dtype == torch.bfloat16
        try:
            expected = _compute_logits_and_flat_gradients("torch", config, device, dtype)
            computed = _compute_logits_and_flat_gradients("triton", config, device, dtype)
        except Exception as error:
            reason = describe_exception_with_place(error)
            yield KernelComparison(precision, torch.inf, tolerance, trains, reason)
            continue
        finally:
            install_kernels_without_tuning("triton")
        for quantity, result, reference in zip(expected._fields, computed, expected, strict=True):
            error = relative_error(result, reference)
            finite = error if error < torch.inf else torch.inf
            yield KernelComparison(f"{quantity} in {precision}", finite, tolerance, trains)


def _compute_logits_and_flat_gradients(
    kind: KernelKind, config: PreTrainedConfig, device: str, dtype: torch.dtype
) -> LogitsAndGradients:
    """Of one pass with one kind of kernels, which stay installed."""
    install_kernels_without_tuning(kind)
    model = build_model_on_device(config, device).train()
    ids = draw_same_token_ids_every_time(model, (ROWS, ROW_LENGTH))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=ids, use_cache=False).logits.float()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return LogitsAndGradients(logits.detach(), torch.cat(gradients))
