"""torch.compile, block by block and in place.

Blocks of one class are compiled once. Each call of one of fla's functions breaks the graph: they
depend on the boundaries of documents, which differ from batch to batch, and Triton's kernels keep
the configurations that `kernels/tuning` has chosen for them. The PyTorch replacements of norms and
activations are compiled with the block.

Evaluation is not compiled, nor is what lies outside of blocks (embedding, final norm, head and
loss): a lookup, a kernel of fla's and one matrix product have nothing to fuse.
"""

import functools
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flame_accel.config import UserError
from flame_accel.kernels import triton_has_device
from flame_accel.kernels.wrapping import (
    DOCUMENT_BY_DOCUMENT,
    Operator,
    layer_function_paths,
    wrap_functions,
)
from flame_accel.parallel.blocks import (
    Forward,
    find_blocks,
    replace_training_forward_and_drop_caches,
)

BACKEND = "inductor"
TRACED_MODULES = tuple(f"flame_accel.kernels.modules.{name}" for name in ("norm", "activation"))
"""Modules whose functions become part of a compiled block."""


def compile_blocks(model: PreTrainedModel) -> None:
    """Compiles each block of a model, in place; the compiler itself runs in the first step.

    Args:
        model: Has blocks (see `find_blocks`); its device has passed `check_compiler_available`.

    Raises:
        UserError: The model has no blocks.
    """
    blocks = find_blocks(model, needed_by_option="training.compile")
    wrap_functions(
        [*layer_function_paths(), *DOCUMENT_BY_DOCUMENT], _exclude_from_graphs_unless_traced
    )
    config: Any = torch._dynamo.config
    # blocks may differ by constants, such as their index
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks))
    for block in blocks:
        assert "forward" not in vars(block), "a block's forward is wrapped after it is compiled"
        forward = MethodType(_compile_class_forward_once(type(block).forward), block)
        replace_training_forward_and_drop_caches(
            block, functools.partial(_call_with_dynamic_document_count, forward)
        )


def _exclude_from_graphs_unless_traced(function: Operator) -> Operator:
    """The function such that compiled code calls it; itself where it is to be compiled."""
    return function if function.__module__ in TRACED_MODULES else torch.compiler.disable(function)


@functools.cache
def _compile_class_forward_once(forward: Forward) -> Forward:
    """A class's forward, compiled once for all blocks of the class."""
    return torch.compile(forward, backend=BACKEND)


def _call_with_dynamic_document_count(forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Calls a compiled forward such that the number of documents is no constant of its graph."""
    boundaries = kwargs.get("cu_seqlens")
    if isinstance(boundaries, Tensor):
        torch._dynamo.maybe_mark_dynamic(boundaries, 0)
    return forward(*args, **kwargs)


def check_compiler_available(device: torch.device) -> None:
    """Checks that a device has a compiler; its absence would only show in the first step.

    Raises:
        UserError: Triton, a C++ compiler or Python's header files are missing.
    """
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
