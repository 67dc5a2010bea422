"""The one place that calls a model's constructor: seeded, checked, and with errors a user can read.

Where a config comes from and what a tokenizer changes in it live in `build.py`.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from flame_accel.config.errors import UsageError, UserError

TORCH_FOLDER = os.path.dirname(torch.__file__)


def instantiate_on_default_device(
    config: PreTrainedConfig, *, seed: int = 0, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Builds the causal language model of a config as it is, on torch's current default device.

    The weights are the architecture's own initialization, drawn from torch's CPU generator under
    `seed`; the generator's state is restored afterwards.

    Args:
        config: Shape of the model.
        seed: Seed of the initial weights.
        trust_remote_code: Whether the code that the config's `auto_map` names may run.

    Raises:
        UserError: no causal language model belongs to the config, it needs a package that is
            missing, its values do not fit together, or it leaves a tensor without a value.
    """
    where = f"model_type '{config.model_type}'"
    has_code = trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if not has_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"no causal language model is registered for {type(config).__name__}",
            where=where,
            remedy="choose another model config, or call AutoModelForCausalLM.register in your own "
            "module (--model.custom)",
        )
    try:
        with _seeded_cpu_generator(seed), _nan_filled_allocations():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise UserError(
            f"a package that the model needs is missing: {error}",
            where=where,
            remedy="install it, or choose a model config without that layer",
        ) from error
    except Exception as error:
        raise UsageError(
            "the values of the model config do not fit together: "
            f"{describe_error_with_type_and_file_name(error)}",
            where=where,
            remedy="correct the sizes that the message names",
        ) from error
    _check_all_values_initialized(model, where)
    return model


def describe_error_with_type_and_file_name(error: Exception) -> str:
    """An error in words: its message, or the source line if it has none, and the file."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if not frame.filename.startswith(TORCH_FOLDER)][-1]
    message = str(error) or frame.line
    return f"{message} ({type(error).__name__} in {os.path.basename(frame.filename)})"


@contextmanager
def _seeded_cpu_generator(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reach the generators of accelerators, which are not forked
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _nan_filled_allocations() -> Iterator[None]:
    """Makes torch fill fresh memory with NaN, or the largest integer, until something writes it."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _check_all_values_initialized(model: PreTrainedModel, where: str) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = [name for name, tensor in tensors if _has_unwritten_values(tensor)]
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise UserError(
            f"{type(model).__name__} leaves without a value: {', '.join(names[:8])}{more}",
            where=where,
            remedy="give them one where they are created, or in the model's _init_weights",
        )


def _has_unwritten_values(tensor: torch.Tensor) -> bool:
    # sizes without values
    if tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.dtype == torch.bool:
        return False
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    return bool((tensor == torch.iinfo(tensor.dtype).max).any())
