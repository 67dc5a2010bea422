"""Skip connection, gate and RMS norm in one pass each way are those of PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.fused_kernels import TOLERANCE, draw, each_dtype

ROWS, WIDTH, EPS = 7, 48, 1e-5


def reference(y: Tensor, x: Tensor, gate: Tensor, skip: Tensor, weight: Tensor) -> Tensor:
    total = (y + skip.repeat_interleave(WIDTH // skip.numel()) * x) * F.silu(gate)
    return F.rms_norm(total, (WIDTH,), weight, EPS)


@each_dtype
@pytest.mark.parametrize("skips", [4, WIDTH])
def test_results_and_gradients_of_a_skip_per_head_or_channel(fused, dtype, skips):
    module = fused("gated_skip_norm")
    inputs = [draw(1, ROWS, WIDTH, dtype=dtype, seed=i) for i in range(3)]
    inputs += [draw(n, dtype=torch.float32, seed=3 + i) for i, n in enumerate((skips, WIDTH))]
    *gated, weight = (x.detach() for x in inputs)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    expected = reference(*wide)
    cotangent = draw(1, ROWS, WIDTH, dtype=dtype, seed=9).detach()
    dy, _, dgate, dskip, dweight = torch.autograd.grad(expected, wide, cotangent.float())
    found, rstd = module.norm_gated_sum(module.GatedSum(*gated), weight, EPS)
    out_dgate = torch.empty_like(gated[2])
    gradients = module.norm_gated_sum_gradients_except_x(
        module.GatedSum(*gated), weight, rstd, cotangent, out_dgate, with_result=True
    )
    pairs = [(found, expected), (gradients.result, expected), (out_dgate, dgate)]
    pairs += [(gradients.y, dy), (gradients.skip, dskip), (gradients.weight, dweight)]
    for number, (ours, theirs) in enumerate(pairs):
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < TOLERANCE[dtype], f"tensor {number}"
