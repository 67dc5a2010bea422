"""fla has our kernels where they support a call, and its own again afterwards."""

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from flame_accel.kernels import install, install_fused_kernels, uninstall


def test_ours_are_used_where_supported_and_fla_comes_back(monkeypatch):
    mlp: Any = importlib.import_module("fla.modules.mlp")
    layernorm: Any = importlib.import_module("fla.modules.norm.layernorm")

    from flame_accel.kernels.fused import replace

    causal_lm: Any = importlib.import_module("fla.models.modeling_utils").FLAForCausalLM

    def functions() -> tuple[Any, ...]:
        names = nn.Embedding.forward, causal_lm._compute_logits_and_loss
        return layernorm.rms_norm, mlp.swiglu_linear, *names

    # a test before this one may have left functions wrapped
    uninstall()
    kind = install()
    before = functions()
    monkeypatch.setattr(replace, "importlib", SimpleNamespace(import_module=fake_module))
    install_fused_kernels()
    monkeypatch.undo()
    installed = functions()
    install_fused_kernels()
    assert functions() == installed and not set(installed) & set(before)
    assert nn.Embedding(3, 2)(torch.zeros(1, dtype=torch.long)) == "ours"
    x = torch.zeros(2, 8)
    assert layernorm.rms_norm(x, None, None) == "ours"
    with replace.fused_kernels_disabled():
        assert layernorm.rms_norm.replaces is before[0]
    uninstall()
    install(kind)
    assert functions() == before


def test_models_leave_logits_out_where_they_learn_from_a_plain_head(monkeypatch):
    from flame_accel.kernels.fused import replace

    asked: list[bool | None] = []

    def original(model: Any, hidden: Any, *args: Any, **options: Any) -> None:
        asked.append(options.get("fuse_linear_cross_entropy"))

    owner = SimpleNamespace(compute=original)
    compute = replace._leave_logits_out_in_training(owner, "compute")
    config = SimpleNamespace(fuse_cross_entropy=True)
    model = SimpleNamespace(training=True, config=config, lm_head=nn.Linear(2, 3, bias=False))
    # no GPU here
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    compute(model, None, num_items_in_batch=3)
    assert asked.pop()
    with replace.fused_kernels_disabled():
        compute(model, None, num_items_in_batch=3)
    compute(model, None)
    compute(model, None, num_items_in_batch=3, fuse_linear_cross_entropy=False)
    model.lm_head.register_forward_pre_hook(lambda module, args: None)
    compute(model, None, num_items_in_batch=3)
    model.training, model.lm_head = False, nn.Linear(2, 3, bias=False)
    compute(model, None, num_items_in_batch=3)
    assert not any(asked) and len(asked) == 5


def fake_module(name: str) -> Any:
    """Stands in for a module of kernels, which this machine may not have a device for."""
    if not name.startswith("flame_accel.kernels.fused."):
        return importlib.import_module(name)
    from flame_accel.kernels.fused.replace import FUSED

    names = {row.ours or row.theirs.rpartition(".")[2] for row in FUSED} | {"embedding_forward"}
    functions = {function: lambda *args, **kwargs: "ours" for function in names}
    checks = {row.supports for row in FUSED} | {"supports_embedding_training_call"}
    supports = {check: lambda *args, **kwargs: True for check in checks}
    return SimpleNamespace(**functions, **supports)
