"""Our Triton kernels compute what the PyTorch ones do: outputs and all gradients.

On a GPU they run as compiled; elsewhere Triton's interpreter runs them, in fp32 and in a process of
its own, since it has to be chosen before Triton is imported.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flame_accel.kernels import install, install_fused_kernels, uninstall
from flame_accel.kernels.modules import activation as torch_activation
from flame_accel.kernels.modules import norm as torch_norm
from tests.helpers.runs import ROOT

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def load(name: str) -> ModuleType:
    """A module of the fused kernels, whose kernels are interpreted if there is no GPU."""
    spec = importlib.util.find_spec(f"flame_accel.kernels.fused.{name}")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fused() -> Iterator[Callable[[str], Any]]:
    if not (ON_GPU or INTERPRETED):
        pytest.skip("runs in the process of the interpreter")
    # which would refuse to launch kernels
    uninstall()
    yield load
    install()


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="this process runs the kernels itself")
def test_the_kernels_are_right_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rs", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "process of the interpreter" not in done.stdout, done.stdout


def draw(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    return x.requires_grad_()


def compare(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: list[Tensor],
    dtype: torch.dtype,
) -> None:
    """Outputs and gradients of both; the reference in fp32."""
    wide = [x.detach().float().requires_grad_() for x in inputs]
    found, expected = ours(*inputs), reference(*wide)
    found = found if isinstance(found, tuple) else (found,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert all(x.dtype == dtype for x in found)
    cotangents = [draw(*x.shape, dtype=dtype, seed=9 + i).detach() for i, x in enumerate(expected)]
    torch.autograd.backward(found, cotangents)
    torch.autograd.backward(expected, [x.float() for x in cotangents])
    pairs = [*zip(found, expected, strict=True)]
    pairs += [(x.grad, y.grad) for x, y in zip(inputs, wide, strict=True)]
    for number, (a, b) in enumerate(pairs):
        assert a is not None and b is not None and a.shape == b.shape
        error = ((a.float() - b).norm() / b.norm()).item()
        assert error < TOLERANCE[dtype], f"tensor {number}: {error}"


@each_dtype
@pytest.mark.parametrize("width", [32, 96, 1024])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(fused, dtype, width, prenorm, residual):
    ours = fused("norm").rms_norm
    inputs = [draw(3, 11, width, dtype=dtype, seed=0), draw(width, dtype=dtype, seed=1)]
    if residual:
        inputs.append(draw(3, 11, width, dtype=dtype, seed=2))

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, weight: Tensor, other: Tensor | None = None) -> Any:
            return function(x, weight, None, other, 1e-5, prenorm)

        return run

    compare(call(ours), call(torch_norm.rms_norm), inputs, dtype)


@each_dtype
@pytest.mark.parametrize("width", [96, 1024])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(fused, dtype, width, biased, residual):
    inputs = [draw(3, 11, width, dtype=dtype, seed=0), draw(width, dtype=dtype, seed=1)]
    inputs += [draw(width, dtype=dtype, seed=2)] if biased else []
    inputs += [draw(3, 11, width, dtype=dtype, seed=3)] if residual else []

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, weight: Tensor, *others: Tensor) -> Any:
            bias = others[0] if biased else None
            # far from zero, as a mean is
            return function(x + 3, weight, bias, others[-1] if residual else None, 1e-5, residual)

        return run

    compare(call(fused("norm").layer_norm), call(torch_norm.group_norm), inputs, dtype)


@each_dtype
@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm_gated(fused, dtype, activation, weighted):
    ours = fused("norm").rms_norm_gated
    inputs = [draw(2, 7, 3, 64, dtype=dtype, seed=seed) for seed in (0, 1)]
    if weighted:
        inputs.append(draw(64, dtype=dtype, seed=2))

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, gate: Tensor, weight: Tensor | None = None) -> Any:
            return function(x, gate, weight, None, activation)

        return run

    compare(call(ours), call(torch_norm.rms_norm_gated), inputs, dtype)


@pytest.mark.parametrize("prenorm", [False, True])
def test_a_residual_of_another_dtype_keeps_its_dtype(fused, prenorm):
    x = draw(4, 32, dtype=torch.float32, seed=0)
    residual = draw(4, 32, dtype=torch.float64, seed=1)
    weight = draw(32, dtype=torch.float32, seed=2)
    found = fused("norm").rms_norm(x, weight, None, residual, prenorm=prenorm)
    y, total = found if prenorm else (found, residual)
    assert y.dtype is torch.float32 and total.dtype is torch.float64
    y.sum().backward()
    assert residual.grad is not None and residual.grad.dtype is torch.float64
    assert x.grad is not None and torch.allclose(residual.grad.float(), x.grad)


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_of_a_norm_with_a_residual_has_a_gradient(fused, used):
    x, residual, weight = (
        draw(*shape, dtype=torch.float32, seed=0) for shape in ((4, 32), (4, 32), (32,))
    )
    direction = draw(4, 32, dtype=torch.float32, seed=1).detach()
    gradients = []
    for module in (fused("norm"), torch_norm):
        result = module.rms_norm(x, weight, None, residual, prenorm=True)[used]
        inputs = (x, residual, weight)
        gradients.append(torch.autograd.grad(result, inputs, direction, materialize_grads=True))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "expanded"])
def test_a_norms_gradient_has_any_layout(fused, layout):
    x, weight = draw(6, 32, dtype=torch.float32, seed=0), draw(32, dtype=torch.float32, seed=1)
    direction = draw(32, 6, dtype=torch.float32, seed=2).detach().mT
    if layout == "expanded":
        direction = direction[:1, :1].expand(6, 32)
    y = fused("norm").rms_norm(x, weight, None)
    found = torch.autograd.grad(y, (x, weight), direction, retain_graph=True)
    expected = torch.autograd.grad(y, (x, weight), direction.contiguous())
    assert all(map(torch.equal, found, expected))


def test_many_rows_share_programs(fused):
    module = fused("norm")
    module.BACKWARD_PROGRAMS = 3
    inputs = [draw(50, 2048, dtype=torch.float32, seed=0), draw(2048, dtype=torch.float32, seed=1)]
    compare(
        lambda x, weight: module.rms_norm(x, weight, None),
        lambda x, weight: torch_norm.rms_norm(x, weight, None),
        inputs,
        torch.float32,
    )


@each_dtype
def test_swiglu(fused, dtype):
    inputs = [draw(5, 700, dtype=dtype, seed=seed) for seed in (0, 1)]
    compare(fused("swiglu").swiglu, torch_activation.swiglu, inputs, dtype)


@each_dtype
@pytest.mark.parametrize("biased", [False, True])
def test_swiglu_linear(fused, dtype, biased):
    inputs = [draw(2, 5, 96, dtype=dtype, seed=seed) for seed in (0, 1)]
    inputs += [draw(40, 96, dtype=dtype, seed=2), *[draw(40, dtype=dtype, seed=3)] * biased]

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, y, weight, bias=None: function(x, y, weight, bias)

    ours = call(fused("swiglu").swiglu_linear)
    compare(ours, call(torch_activation.swiglu_linear), inputs, dtype)


def test_swiglu_linear_follows_autocast_and_keeps_the_dtype_of_the_weights_gradient(fused):
    x, y = (draw(4, 32, dtype=torch.float32, seed=seed) for seed in (0, 1))
    weight = draw(8, 32, dtype=torch.float32, seed=2)
    with torch.autocast(DEVICE, torch.float16):
        found = fused("swiglu").swiglu_linear(x, y, weight, None)
    assert found.dtype is torch.float16
    found.sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_the_gradient_of_an_embedding(fused, padding_idx):
    # some tokens more often than a program adds at a time, some not at all
    ids = torch.randint(40, (2, 150), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids[0, :70], ids[1, :50], ids[:, 80:120] = 7, 8, 39
    weight = draw(60, 200, dtype=torch.float32, seed=1)
    cotangent = draw(2, 150, 200, dtype=torch.float32, seed=2).detach()
    module = fused("embedding")
    y = module._Embedding.apply(weight, ids, padding_idx)
    assert torch.equal(y, F.embedding(ids, weight))
    [found] = torch.autograd.grad(y, weight, cotangent)
    wide = weight.detach().double().requires_grad_()
    F.embedding(ids, wide, padding_idx).backward(cotangent.double())
    assert wide.grad is not None
    assert torch.allclose(found.double(), wide.grad, atol=1e-5)
    if padding_idx is not None:
        assert not found[padding_idx].any()


@each_dtype
@pytest.mark.parametrize(
    "options",
    [{"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "sum", "use_l2warp": True}],
    ids=str,
)
def test_linear_cross_entropy(fused, dtype, options):
    module = fused("linear_cross_entropy")
    # three chunks of tokens and four blocks of logits, none of them full
    module.CHUNK_LOGITS, module.FEWEST_TOKENS, module.BLOCK = 150 * 128, 1, 64
    inputs = [draw(300, 32, dtype=dtype, seed=0), draw(200, 32, dtype=dtype, seed=1)]
    targets = torch.randint(200, (300,), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    targets[5:40] = -100
    loss = module.fused_linear_cross_entropy_loss(inputs[0], targets, inputs[1], **options)
    found = [loss, *torch.autograd.grad(loss / 7, inputs)]
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    logits = wide[0] @ wide[1].T
    reference = F.cross_entropy(logits, targets, reduction=options["reduction"])
    # whose gradient is the penalty's
    penalty = 1e-4 / 300 / 2 * logits.amax(1).square().sum() if len(options) > 1 else 0.0
    found += [reference, *torch.autograd.grad((reference + penalty) / 7, wide)]
    for a, b in zip(found[:3], found[3:], strict=True):
        assert ((a.float() - b).norm() / b.norm()).item() < TOLERANCE[dtype]
    assert found[0].dtype is torch.float32 and found[1].dtype is found[2].dtype is dtype


def test_linear_cross_entropy_without_gradients_or_targets(fused):
    function = fused("linear_cross_entropy").fused_linear_cross_entropy_loss
    x, weight = (draw(*shape, dtype=torch.float32, seed=0) for shape in ((30, 16), (20, 16)))
    targets = torch.full((30,), -100, device=DEVICE)
    loss = function(x, targets, weight, reduction="sum")
    assert loss.item() == 0 and not torch.autograd.grad(loss, x)[0].any()
    targets[:] = 3
    with torch.no_grad():
        loss = function(x, targets, weight)
    expected = F.cross_entropy(x @ weight.T, targets)
    assert torch.allclose(loss, expected)


@each_dtype
@pytest.mark.parametrize("boundaries", [[0, 66, 67, 68, 70, 300, 301], None])
def test_convolution_gradients_stay_in_their_document(fused, dtype, boundaries):
    module, mixing = fused("causal_conv"), fused("token_mix")
    rows, length, width = (1, boundaries[-1], 40) if boundaries else (3, 130, 40)
    projected, dprojected = (
        draw(rows, length, width + 16, dtype=dtype, seed=0).detach() for _ in range(2)
    )
    x, dx = projected[..., 8:-8], dprojected[..., 8:-8]
    weight, bias = draw(width, 4, dtype=dtype, seed=1), draw(width, dtype=dtype, seed=2)
    dy = draw(rows, length, width, dtype=dtype, seed=3).detach()
    cu_seqlens = None if boundaries is None else torch.tensor(boundaries, device=DEVICE)
    starts = mixing.mark_document_starts_as_int8(projected, cu_seqlens)
    inputs = module.Convolution(x, weight.detach(), bias.detach())
    found = module.convolution_gradients(inputs, starts, dy, dx)

    wide = [v.detach().float().requires_grad_() for v in (x, weight, bias)]
    documents = starts.cumsum(0).view(rows, length)
    z = wide[2].expand(rows, length, width)
    for lag in range(4):
        before = F.pad(wide[0], (0, 0, lag, 0))[:, :length]
        same = F.pad(documents, (lag, 0), value=-1)[:, :length] == documents
        z = z + before * same[..., None] * wide[1][:, 3 - lag]
    F.silu(z).backward(dy.float())
    for value, expected in zip((dx, found.weight, found.bias), wide, strict=True):
        assert expected.grad is not None
        error = ((value.float() - expected.grad).norm() / expected.grad.norm()).item()
        assert error < TOLERANCE[dtype]


def test_calls_that_the_kernels_do_not_support_are_recognized(fused):
    module = fused("norm")
    x, weight = torch.zeros(2, 8), torch.ones(8)
    assert module.supports_norm_of_limited_width(x, weight, weight)
    assert not module.supports_norm_of_limited_width(torch.zeros(2, 9000), None, None)
    assert module.supports_rms_norm_gated_options(x, x, weight, None, "silu")
    assert not module.supports_rms_norm_gated_options(x, x, weight, None, "gelu")
    assert not module.supports_rms_norm_gated_options(x, x, weight, weight, "silu")
    assert not module.supports_rms_norm_gated_options(x, x, weight, None, residual=x)
    assert not fused("swiglu").supports_swiglu_same_shape_and_dtype(x, x.double(), None)
    supports = fused("linear_cross_entropy").supports_plain_loss_unless_l2warp_mean
    assert supports(x, weight, x) and supports(x, weight, x, reduction="sum", use_l2warp=True)
    assert not supports(x, weight, x, use_l2warp=True)
    assert not supports(x, weight, x, weight)
    assert not supports(x, weight, x, logit_softcapping=30.0)


@pytest.mark.covers_option("model.fused_kernels")
@pytest.mark.parametrize(
    ("active", "fused_kernels"), [("triton", True), ("triton", False), ("torch", True)]
)
def test_model_fused_kernels_replaces_those_of_fla_where_triton_runs(
    monkeypatch, train_here, flags, active, fused_kernels
):
    from flame_accel import train
    from flame_accel.kernels import configured

    asked: list[bool] = []
    monkeypatch.setattr(configured, "install", lambda kind: active)
    monkeypatch.setattr(configured, "install_fused_kernels", lambda: asked.append(True))
    monkeypatch.setattr(train, "check_run_support_and_log_warnings", stop)
    with pytest.raises(StopIteration):
        train_here(flags(**{"model.fused_kernels": fused_kernels}))
    assert bool(asked) == (active == "triton" and fused_kernels)


def stop(*args: object) -> None:
    raise StopIteration


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
