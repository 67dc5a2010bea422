"""The page of kernels lists what is served, and no public function of fla is left out."""

import inspect
import sys
from types import FunctionType

from docs.generate_kernels import (
    FUNCTIONS_WITH_REPLACEMENT,
    NOT_SERVED,
    PAGE,
    describe_page,
    list_public_functions,
    load_originals,
)

WITHOUT_KERNELS = {
    "modules.activations.ops.elu_p1",
    "modules.fused_kl_div.ops.fused_kl_div_loss",
    "modules.grpo.ops.grpo_loss_with_old_logps",
    "ops.wall_attn.decode.build_wall_kv_cache",
}
"""PyTorch in a module that has kernels too, or calls of functions that are served."""


def test_the_table_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == describe_page(page), "python -m docs.generate_kernels"


def test_every_public_function_is_served_or_has_a_reason():
    originals = {id(inspect.unwrap(f)) for f in load_originals().values()}
    for path, value in list_public_functions():
        if path in FUNCTIONS_WITH_REPLACEMENT or path in NOT_SERVED or path in WITHOUT_KERNELS:
            continue
        if inspect.isclass(value) or id(inspect.unwrap(value)) in originals:
            continue
        # replaced functions have our modules' names
        module = sys.modules[value.__module__]
        if path.startswith("ops.utils.index.") or module.__name__.startswith("flame_accel."):
            continue
        assert isinstance(value, FunctionType), path
        assert "triton.jit" not in inspect.getsource(module), path


def test_what_is_not_served_is_public():
    public = {path for path, _ in list_public_functions()}
    assert set(NOT_SERVED) <= public and public >= WITHOUT_KERNELS
