"""Which calls of the gated delta rule go to FlashQLA, and with which arguments.

Its function is stood in for by one with its signature (0.1.3) that computes on the CPU.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from flame_accel import kernels
from flame_accel.kernels.boundaries_on_host import (
    find_known_boundaries,
    remember_boundaries,
    view_padded_boundaries,
)
from flame_accel.kernels.packages import flash_qla
from flame_accel.kernels.recurrence import delta_rule
from tests.helpers.gradients import assert_close, outputs_and_gradients

BOUNDARIES = (0, 70, 71, 200)
TOKENS = 200


class FakePackage(ModuleType):
    """`flash_qla`."""

    boundaries: list[Tensor | None]

    def chunk_gated_delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        head_first: bool = False,
        state_v_first: bool = False,
        auto_cp: bool = True,
        enable_fwd_cp_cache: bool = True,
        cp_context: None = None,
        force_intra_cp: bool = False,
    ) -> tuple[Tensor, None]:
        self.boundaries.append(cu_seqlens)
        assert q.shape[-1] == v.shape[-1] == 128
        assert g.dtype == beta.dtype == torch.float32
        assert g.shape == beta.shape == v.shape[:-1]
        assert not (auto_cp or head_first or force_intra_cp or output_final_state)
        o, _ = delta_rule.chunk_gated_delta_rule(
            q, k, v, g, beta,
            scale=scale,
            initial_state=initial_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            state_v_first=state_v_first,
            cu_seqlens=cu_seqlens,
        )  # fmt: skip
        return o, None


@pytest.fixture
def package(monkeypatch) -> Iterator[FakePackage]:
    """With fp32 tensors on the CPU in place of what the kernels take."""
    fake = FakePackage("flash_qla")
    # fla looks for it
    fake.__spec__ = ModuleSpec("flash_qla", None)
    fake.boundaries = []
    monkeypatch.setitem(sys.modules, "flash_qla", fake)
    monkeypatch.setattr(flash_qla, "_is_half_on_gpu", lambda q: True)
    kernels.install("torch")
    flash_qla.activate()
    yield fake
    flash_qla.deactivate()
    kernels.uninstall()
    kernels.install()


def tensors(values: int = 256, heads: int = 2, groups: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shape = (1, TOKENS, heads)
    return {
        "q": torch.randn(*shape, 128),
        "k": torch.randn(*shape, 128),
        "v": torch.randn(1, TOKENS, groups, values),
        "g": torch.randn(1, TOKENS, groups),
        "beta": torch.randn(1, TOKENS, groups),
        "A_log": torch.rand(groups),
        "dt_bias": torch.randn(groups),
    }


LAYER_OPTIONS = {
    "use_qk_l2norm_in_kernel": True,
    "use_beta_sigmoid_in_kernel": True,
    "use_gate_in_kernel": True,
    "state_v_first": True,
    "output_final_state": False,
}
"""What fla's layer passes in training."""


def by_name(operator: Callable[..., Any], names: list[str], options: dict[str, Any]):
    def call(*values: Tensor) -> Tensor:
        return operator(**dict(zip(names, values, strict=True)), **options)[0]

    return call


@pytest.mark.parametrize("allow_neg_eigval", [False, True])
@pytest.mark.parametrize(("values", "groups"), [(256, 2), (128, 4), (384, 4)])
@pytest.mark.parametrize("v_first", [True, False])
def test_a_layers_call_gives_what_flas_operator_gives(
    package, values, groups, v_first, allow_neg_eigval
):
    inputs = tensors(values, groups=groups)
    state = (3, groups, values, 128) if v_first else (3, groups, 128, values)
    inputs["initial_state"] = torch.randn(state)
    options = LAYER_OPTIONS | {
        "allow_neg_eigval": allow_neg_eigval,
        "state_v_first": v_first,
        "cu_seqlens": torch.tensor(BOUNDARIES),
    }
    names = list(inputs)
    assert flash_qla.serves_call(**inputs, **options)
    assert_close(
        outputs_and_gradients(
            by_name(flash_qla.chunk_gated_delta_rule, names, options), list(inputs.values())
        ),
        outputs_and_gradients(
            by_name(delta_rule.chunk_gated_delta_rule, names, options), list(inputs.values())
        ),
    )
    assert len(package.boundaries) == 1


def test_chunks_are_counted_where_the_boundaries_are_known(package):
    cu_seqlens = torch.tensor(BOUNDARIES, dtype=torch.int32)
    remember_boundaries(cu_seqlens, BOUNDARIES)
    flash_qla.chunk_gated_delta_rule(**tensors(), **LAYER_OPTIONS, cu_seqlens=cu_seqlens)
    size, first, count, chunks = package.boundaries[0]._flash_qla_prepared_varlen  # type: ignore
    assert size == 64
    assert first.tolist() == [0, 2, 3, 6]
    assert count == 6
    assert chunks.tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2]]
    assert first.dtype == chunks.dtype == torch.int32


def test_a_graph_has_room_for_all_chunks_that_there_may_be(package):
    padded = torch.tensor([*BOUNDARIES, TOKENS, TOKENS], dtype=torch.int32)
    view = view_padded_boundaries(padded, tokens=TOKENS, longest=TOKENS)
    flash_qla.chunk_gated_delta_rule(**tensors(), **LAYER_OPTIONS, cu_seqlens=view)
    _, first, count, chunks = package.boundaries[0]._flash_qla_prepared_varlen  # type: ignore
    assert first.tolist() == [0, 2, 3, 6, 6, 6]
    known = find_known_boundaries(view)
    assert known is not None
    assert count == known.count_chunks(64) == len(chunks) == 3 + 5
    # what no document has is the first chunk of the last one, which is empty
    assert chunks[6:].tolist() == [[4, 0], [4, 0]]


def test_unknown_boundaries_are_left_to_the_package(package):
    flash_qla.chunk_gated_delta_rule(
        **tensors(), **LAYER_OPTIONS, cu_seqlens=torch.tensor(BOUNDARIES)
    )
    assert not hasattr(package.boundaries[0], "_flash_qla_prepared_varlen")


def test_fla_dispatches_calls_of_training_here(package, monkeypatch):
    monkeypatch.setenv("FLA_FLASH_QLA", "0")
    kernels.uninstall()
    import fla.ops.gated_delta_rule as fla_module
    from fla.ops.gated_delta_rule import gate

    inputs, options = tensors(), dict(LAYER_OPTIONS)
    del inputs["A_log"], inputs["dt_bias"]
    for name in ("use_gate_in_kernel", "use_beta_sigmoid_in_kernel", "use_qk_l2norm_in_kernel"):
        del options[name]
    operator: Any = fla_module.chunk_gated_delta_rule
    o, state = operator(inputs["q"], inputs["k"], inputs["v"], inputs["g"], beta=inputs["beta"])
    assert o.shape == inputs["v"].shape
    assert state is None
    # the gate is dispatched under the same operation, and stays fla's, which needs a GPU
    with pytest.raises(RuntimeError, match="0 active drivers"):
        gate.fused_gdn_gate(inputs["g"], torch.ones(2))
    flash_qla.deactivate()
    with pytest.raises(RuntimeError, match="0 active drivers"):
        operator(**inputs, **options)
    assert len(package.boundaries) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"k": torch.ones(1, TOKENS, 2, 128, dtype=torch.half)}, "torch.float32, torch.float16"),
        ({"q": torch.ones(1, TOKENS, 2, 64)}, "heads of 64 channels (256 of values)"),
        ({"v": torch.ones(1, TOKENS, 2, 192)}, "heads of 128 channels (192 of values)"),
        ({"cp_context": object()}, "rows that are split over GPUs"),
        ({"output_final_state": True}, "generation"),
        ({"head_first": True}, "the arguments head_first"),
    ],
)
def test_other_calls_are_left_to_fla_and_the_log_says_why_once(package, caplog, changes, told):
    call: dict[str, Any] = tensors() | LAYER_OPTIONS | changes
    with caplog.at_level("INFO", logger="flame_accel"):
        assert [flash_qla.serves_call(**call) for _ in range(2)] == [False, False]
    assert [told in record.getMessage() for record in caplog.records] == [True]


def test_the_host_is_not_served(package, monkeypatch):
    monkeypatch.undo()
    assert not flash_qla.serves_call(**tensors())
