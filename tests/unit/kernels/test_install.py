"""Installing the PyTorch kernels: what is replaced, restored, refused, and what models then do."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from fla import models
from fla.layers.utils import get_unpad_data
from torch import Tensor

from flame_accel import kernels
from flame_accel.config.errors import UserError
from flame_accel.kernels.attention.flash_attention import flash_attn_func
from flame_accel.kernels.install import _resolve_attribute_value_or_none
from flame_accel.kernels.replacements import (
    FIXES_EVERYWHERE,
    REPLACEMENTS,
    REPLACEMENTS_WITHOUT_FLASH_ATTN,
)
from flame_accel.kernels.tuning.warps import MISCOMPILED

BOUNDARIES = torch.tensor([0, 1, 30, 75, 100])


pytestmark = pytest.mark.usefixtures("torch_kernels")


def snapshot() -> dict[tuple[str, str], int]:
    """Identity of every name in fla's modules, and of ACT2FN's entries."""
    names = {
        (module, name): id(value)
        for module, values in list(sys.modules.items())
        if module == "fla" or module.startswith("fla.")
        for name, value in vars(values).items()
    }
    table = sys.modules["fla.modules.activations"].ACT2FN
    return names | {("ACT2FN", name): id(value) for name, value in table.items()}


def test_uninstall_restores_fla():
    kernels.uninstall()
    before, precision = snapshot(), torch.get_float32_matmul_precision()
    for _ in range(2):
        assert kernels.install("torch") == "torch"
    during = snapshot()
    kernels.uninstall()
    assert before == snapshot()
    assert torch.get_float32_matmul_precision() == precision
    changed = {key for key in before if before[key] != during[key]}
    for key in (
        ("fla.ops.gla", "chunk_gla"),
        ("fla.layers.gla", "chunk_gla"),
        ("fla.layers.hgrn2", "chunk_gla"),
        ("fla.modules.activations", "swish"),
        ("ACT2FN", "silu"),
        ("fla.layers.attn", "flash_attn_func"),
    ):
        assert key in changed
    kernels.install("torch")


@pytest.mark.parametrize("theirs", [*REPLACEMENTS, *FIXES_EVERYWHERE])
def test_every_row_of_the_table_exists_and_is_served(theirs):
    assert callable(_resolve_attribute_value_or_none(f"fla.{theirs}")[2])
    assert callable(
        _resolve_attribute_value_or_none(
            f"flame_accel.kernels.{(REPLACEMENTS | FIXES_EVERYWHERE)[theirs]}"
        )[2]
    )


def test_every_name_missing_of_flash_attn_is_served():
    for theirs, path in REPLACEMENTS_WITHOUT_FLASH_ATTN.items():
        installed = _resolve_attribute_value_or_none(f"fla.{theirs}").value
        ours = _resolve_attribute_value_or_none(f"flame_accel.kernels.{path}").value
        assert getattr(installed, "implementation", installed) is ours


def test_triton_gets_attention_and_nothing_else(monkeypatch):
    installing = sys.modules["flame_accel.kernels.install"]
    monkeypatch.setattr(installing, "triton_has_device", lambda: True)
    kernels.uninstall()
    before = snapshot()
    assert kernels.install("triton") == "triton"
    during = snapshot()
    kernels.uninstall()
    assert before == snapshot()
    changed = {".".join(key) for key in during if during[key] != before.get(key)}
    assert changed >= {f"fla.{theirs}" for theirs in REPLACEMENTS_WITHOUT_FLASH_ATTN}
    # fla's own, behind functions that hand them one dtype, and no padding
    fixed = {
        "fla.ops.log_linear_attn.chunk.chunk_log_linear_attn",
        "fla.ops.deltaformer.parallel.deltaformer_attn",
    }
    assert changed & {f"fla.{theirs}" for theirs in REPLACEMENTS} == fixed
    kernels.install("torch")


@pytest.mark.parametrize("path", MISCOMPILED)
def test_hopper_launches_what_ptxas_breaks_with_few_warps(monkeypatch, path):
    installing = sys.modules["flame_accel.kernels.install"]
    monkeypatch.setattr(installing, "triton_has_device", lambda: True)
    monkeypatch.setattr(sys.modules["fla.utils"], "IS_NVIDIA_HOPPER", True)
    kernels.uninstall()
    original = _resolve_attribute_value_or_none(f"fla.{path}")[2]
    kernels.install("triton")
    fixed = _resolve_attribute_value_or_none(f"fla.{path}")[2]
    monkeypatch.setattr(original, "run", lambda num_warps, BK: num_warps)
    asked = [(16, 4), (32, 4), (64, 4), (128, 8)]
    assert [fixed.run(BK=width, num_warps=warps) for width, warps in asked] == [2, 2, 4, 8]
    assert [fixed.run(BK=width) for width, _ in asked] == [2, 2, 4, 4]
    kernels.uninstall()
    assert _resolve_attribute_value_or_none(f"fla.{path}")[2] is original
    kernels.install("torch")


def test_flash_attn_is_left_alone_where_it_is(monkeypatch):
    kernels.uninstall()
    real = object()
    with monkeypatch.context() as patch:
        patch.setattr("fla.layers.attn.flash_attn_func", real)
        kernels.install("torch")
        assert sys.modules["fla.layers.attn"].flash_attn_func is real
        assert sys.modules["fla.layers.mla"].flash_attn_func is None
        kernels.uninstall()
    kernels.install("torch")
    assert sys.modules["fla.layers.mla"].flash_attn_func is flash_attn_func


@pytest.mark.skipif(kernels.triton_has_device(), reason="needs a machine without a Triton device")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(UserError, match="Triton has no device"):
        kernels.install("triton")
    assert kernels.install("auto") == "torch"


@pytest.mark.skipif(kernels.triton_has_device(), reason="needs a machine without a Triton device")
def test_an_operator_without_an_implementation_is_named():
    from fla.ops.kda.gate import kda_gate_fwd

    with pytest.raises(UserError, match=r"gate.*needs a Triton device"):
        kda_gate_fwd(torch.randn(1, 16, 2, 16), torch.randn(2))


def test_importing_the_package_is_light():
    code = (
        "import sys, flame_accel.kernels; sys.exit('torch' in sys.modules or 'fla' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def tiny(config: type = models.GLAConfig, **options: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 64}
    return transformers.AutoModelForCausalLM.from_config(config(**shape | options))


def tokens(batch: int, length: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(64, (batch, length))


VARIANTS = {
    "plain": {},
    "unfused": {"fuse_norm": False, "fuse_swiglu": False, "fuse_cross_entropy": False},
    "linear-loss": {"fuse_linear_cross_entropy": True, "fuse_cross_entropy": False},
    "convolution": {"use_short_conv": True, "num_heads": 4, "num_kv_heads": 2, "use_l2warp": True},
    "attnres": {"attnres_block_size": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gla_learns_with_and_without_documents(variant):
    model = tiny(**VARIANTS[variant])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = tokens(2, 50)
    losses = []
    for step in range(8):
        batch = {"input_ids": x, "labels": x}
        if step % 2:
            batch = {key: value.view(1, -1) for key, value in batch.items()}
            batch["cu_seqlens"] = BOUNDARIES
        loss = model(**batch).loss
        loss.backward()
        # the first layer of attnres has nothing to attend to, and two parameters for it
        assert sum(p.grad is None for p in model.parameters()) == (2 if variant == "attnres" else 0)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-2] < losses[0] - 0.2
    assert losses[-1] < losses[1] - 0.2


@pytest.mark.parametrize("variant", ["plain", "convolution"])
def test_generation_token_by_token_equals_the_whole_sequence(variant):
    model = tiny(**VARIANTS[variant], eos_token_id=None).eval()
    x = tokens(2, 10)
    out = model.generate(
        x, attention_mask=torch.ones_like(x), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    with torch.no_grad():
        logits = model(out).logits
    assert torch.equal(out[:, 10:], logits.argmax(-1)[:, 9:-1])


def test_prompts_of_different_lengths_are_padded_on_the_left():
    model = tiny(use_short_conv=True).eval()
    x = tokens(1, 12)
    padded = torch.cat([torch.zeros(1, 5).long(), x[:, :7]], 1)
    mask = torch.ones(2, 12).long()
    mask[1, :5] = 0
    with torch.no_grad():
        logits = model(torch.cat([x, padded]), attention_mask=mask).logits
        alone = model(x[:, :7]).logits
    assert get_unpad_data(mask)[1].tolist() == [0, 12, 19]
    assert torch.allclose(logits[1, 5:], alone[0], atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "convolution"])
def test_a_changed_document_leaves_others_logits_bit_identical(variant):
    model = tiny(**VARIANTS[variant]).eval()
    x = tokens(1, 100)
    y = x.clone()
    y[:, :30] = (y[:, :30] + 1) % 64
    with torch.no_grad():
        a, b = (model(z, cu_seqlens=BOUNDARIES).logits for z in (x, y))
        alone = model(x[:, 30:75]).logits
    assert not torch.equal(a[:, :30], b[:, :30])
    assert torch.equal(a[:, 30:], b[:, 30:])
    assert torch.allclose(a[:, 30:75], alone, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_is_close_to_full_precision(variant):
    model = tiny(**VARIANTS[variant])
    x = tokens(2, 50)
    expected = model(x, labels=x).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, labels=x).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - expected) < 2e-2
    assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (models.LinearAttentionConfig, {"norm_q": True}),
        (models.RetNetConfig, {}),
        (models.HGRN2Config, {"num_heads": None, "expand_ratio": 16}),
        (models.Mamba2Config, {"num_heads": 4, "head_dim": 16, "state_size": 16}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_models_of_the_family_learn(config, options):
    model = tiny(config, **options)
    x = tokens(2, 70)
    loss = model(x, labels=x).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
