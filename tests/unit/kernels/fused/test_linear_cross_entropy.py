"""The loss from hidden states, a chunk at a time: values and all gradients."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.fused_kernels import DEVICE, TOLERANCE, draw, each_dtype


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


def test_calls_that_the_kernels_do_not_support_are_recognized(fused):
    x, weight = torch.zeros(2, 8), torch.ones(8)
    supports = fused("linear_cross_entropy").supports_plain_loss_unless_l2warp_mean
    assert supports(x, weight, x) and supports(x, weight, x, reduction="sum", use_l2warp=True)
    assert not supports(x, weight, x, use_l2warp=True)
    assert not supports(x, weight, x, weight)
    assert not supports(x, weight, x, logit_softcapping=30.0)
