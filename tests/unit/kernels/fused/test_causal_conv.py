"""The convolution's backward pass, interpreted and as Triton compiles it: all gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.fused import causal_conv
from flame_accel.kernels.fused.token_mix import mark_document_starts_as_int8
from tests.helpers.fused_kernels import DEVICE, each_dtype
from tests.helpers.fused_kernels import TOLERANCE as KERNEL_TOLERANCE
from tests.helpers.fused_kernels import draw as draw_on_device
from tests.helpers.ttir import compile_to_ttir, launch_on_numpy

WIDTH, MARGIN = 72, 8
TOLERANCE = {"fp32": 1e-6, "bf16": 3e-3}


def convolve(x: Tensor, weight: Tensor, bias: Tensor, documents: Tensor) -> Tensor:
    z = bias.expand(x.shape).clone()
    length = x.shape[1]
    for lag in range(causal_conv.WINDOW):
        before = F.pad(x, (0, 0, lag, 0))[:, :length]
        same = F.pad(documents, (lag, 0), value=-1)[:, :length] == documents
        z = z + before * same[..., None] * weight[:, causal_conv.WINDOW - 1 - lag]
    return F.silu(z)


@pytest.mark.parametrize("boundaries", [[0, 66, 67, 68, 70, 300, 301], None])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_compiled_gradients_are_those_of_the_convolution(dtype, boundaries):
    rows, length = (1, boundaries[-1]) if boundaries else (3, 130)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        return drawn.bfloat16().float() if dtype == "bf16" else drawn

    projected, dy = draw(rows, length, WIDTH + 2 * MARGIN), draw(rows, length, WIDTH)
    weight, bias = draw(WIDTH, causal_conv.WINDOW), draw(WIDTH)
    starts = mark_document_starts_as_int8(
        projected, None if boundaries is None else torch.tensor(boundaries)
    )
    programs = -(-rows * length // (causal_conv.SEGMENT * causal_conv.SEGMENTS))
    dprojected = np.full(projected.numel(), np.nan, np.float32)
    tensors = {
        "x": projected.flatten().numpy()[MARGIN:],
        "dy": dy.flatten().numpy(),
        "starts": starts.numpy(),
        "weight": weight.flatten().numpy(),
        "bias": bias.numpy(),
        "dx": dprojected[MARGIN:],
        "dweight": np.full(programs * weight.numel(), np.nan, np.float32),
        "dbias": np.full(programs * WIDTH, np.nan, np.float32),
    }
    activations = dict.fromkeys(("x", "dy", "dx"), f"*{dtype}")
    vectors = dict.fromkeys(("weight", "bias", "dweight", "dbias"), "*fp32")
    numbers = {"M": rows * length, "x_stride": projected.shape[2], "dx_stride": projected.shape[2]}
    lines = compile_to_ttir(
        causal_conv._convolution_backward_kernel,
        activations | vectors | {"starts": "*i8"} | dict.fromkeys(numbers, "i32"),
        {
            "N": WIDTH, "SEGMENT": causal_conv.SEGMENT, "SEGMENTS": causal_conv.SEGMENTS,
            "COLUMNS": causal_conv.COLUMNS, "HAS_BIAS": True,
        },
    )  # fmt: skip
    launch_on_numpy(lines, tensors, numbers, (programs, -(-WIDTH // causal_conv.COLUMNS)))

    dx = torch.from_numpy(dprojected).view(projected.shape)
    found = {
        "x": dx[..., MARGIN:-MARGIN],
        "weight": torch.from_numpy(tensors["dweight"]).view(programs, *weight.shape).sum(0),
        "bias": torch.from_numpy(tensors["dbias"]).view(programs, WIDTH).sum(0),
    }
    inputs = [projected[..., MARGIN:-MARGIN], weight, bias]
    inputs = [value.clone().requires_grad_() for value in inputs]
    documents = starts.cumsum(0).view(rows, length)
    convolve(inputs[0], inputs[1], inputs[2], documents).backward(dy)
    for (name, value), wanted in zip(found.items(), inputs, strict=True):
        assert wanted.grad is not None
        error = ((value - wanted.grad).norm() / wanted.grad.norm()).item()
        assert error < TOLERANCE[dtype], name
    assert dx[..., :MARGIN].isnan().all() and dx[..., -MARGIN:].isnan().all()


@each_dtype
@pytest.mark.parametrize("boundaries", [[0, 66, 67, 68, 70, 300, 301], None])
def test_convolution_gradients_stay_in_their_document(fused, dtype, boundaries):
    module, mixing = fused("causal_conv"), fused("token_mix")
    rows, length, width = (1, boundaries[-1], 40) if boundaries else (3, 130, 40)
    projected, dprojected = (
        draw_on_device(rows, length, width + 16, dtype=dtype, seed=0).detach() for _ in range(2)
    )
    x, dx = projected[..., 8:-8], dprojected[..., 8:-8]
    weight, bias = (
        draw_on_device(width, 4, dtype=dtype, seed=1),
        draw_on_device(width, dtype=dtype, seed=2),
    )
    dy = draw_on_device(rows, length, width, dtype=dtype, seed=3).detach()
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
        assert error < KERNEL_TOLERANCE[dtype]
