"""torch.compile, block by block and in place.

Blocks of one class are compiled once. A compiled block is left to call fla's functions and entered
again behind them: they look at the boundaries of documents, which differ from batch to batch, and
Triton's kernels keep the configurations that `kernels/tuning` has chosen for them. PyTorch's
stand-ins for norms and activations are compiled with the block.

Evaluation runs as it does without compiling. What stands outside of blocks (embedding, last norm,
head and loss) is a lookup, a kernel of fla's or one matrix product, with nothing to fuse.
"""

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flame_accel.config import UserError
from flame_accel.kernels import triton_has_device
from flame_accel.kernels.operators import (
    DOCUMENT_BY_DOCUMENT,
    Operator,
    function_paths,
    stand_between,
)
from flame_accel.parallel.blocks import find_blocks, replace_forward

BACKEND = "inductor"
TRACED = tuple(f"flame_accel.kernels.modules.{name}" for name in ("norm", "activation"))
"""Where the functions are that become part of a compiled block."""


def compile_blocks(model: PreTrainedModel, device: torch.device) -> None:
    """Compiles each block of a model, in place; the compiler runs in the first step.

    Args:
        model: Any whose blocks are known (see `find_blocks`).
        device: Where it will run.

    Raises:
        UserError: The machine has no compiler, or the model has no blocks.
    """
    _check_compiler(device)
    blocks = find_blocks(model, where="training.compile")
    stand_between([*function_paths(), *DOCUMENT_BY_DOCUMENT], _leave_alone)
    config: Any = torch._dynamo.config
    # blocks may differ by constants, such as their index
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks))
    for block in blocks:
        assert "forward" not in vars(block), "what wraps a block's forward comes after compiling"
        forward = MethodType(_compiled(type(block).forward), block)
        replace_forward(block, functools.partial(_run, forward))


def _leave_alone(function: Operator) -> Operator:
    return function if function.__module__ in TRACED else torch.compiler.disable(function)


@functools.cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, backend=BACKEND)


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    boundaries = kwargs.get("cu_seqlens")
    if isinstance(boundaries, Tensor):
        # as many as there are documents: not a constant to compile for
        torch._dynamo.maybe_mark_dynamic(boundaries, 0)
    return forward(*args, **kwargs)


def _check_compiler(device: torch.device) -> None:
    """Asks beforehand for what would be missed in the middle of the first step."""
    if device.type != "cpu":
        if not triton_has_device():
            raise UserError(
                f"compiling for {device.type} needs Triton, which has no device here",
                where="training.compile",
                remedy="remove the option, or install triton",
            )
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"compiling for CPUs needs a C++ compiler; there is no {compiler}",
            where="training.compile",
            remedy="install g++, name another compiler in CXX, or remove the option",
        )
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        raise UserError(
            f"compiling for CPUs needs Python's header files; there is no {headers}",
            where="training.compile",
            remedy="install them (python3-dev), or remove the option",
        )
