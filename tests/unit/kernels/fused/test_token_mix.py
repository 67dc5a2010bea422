"""Each channel of a token is moved towards the token before it, in its document."""

import pytest
import torch
from torch import Tensor

from tests.helpers.fused_kernels import DEVICE, TOLERANCE, draw, each_dtype

WIDTH, MIXES = 24, 3


def mix(x: Tensor, starts: list[int], mus: Tensor) -> Tensor:
    rows = x.reshape(-1, WIDTH)
    before = torch.cat((torch.zeros_like(rows[:1]), rows[:-1]))
    before = before.index_fill(0, torch.tensor(starts, device=x.device), 0.0)
    return torch.stack([rows + (before - rows) * mu for mu in mus])


@each_dtype
@pytest.mark.parametrize("boundaries", [[0, 1, 9, 20, 20], None])
def test_mixes_and_gradients_stay_in_their_document(fused, dtype, boundaries):
    token_mix = fused("token_mix")
    x = draw(*((1, 20) if boundaries else (2, 10)), WIDTH, dtype=dtype, seed=0)
    mus = draw(MIXES, WIDTH, dtype=torch.float32, seed=1)
    cu_seqlens = None if boundaries is None else torch.tensor(boundaries, device=DEVICE)
    marks = token_mix.mark_document_starts_as_int8(x, cu_seqlens)
    starts = marks.nonzero().flatten().tolist()
    assert starts == ([0, 1, 9] if boundaries else [0, 10])
    wide = x.detach().float().requires_grad_()
    expected = mix(wide, starts, mus)
    found = token_mix.mix_with_previous_token(x.detach(), marks, mus.detach())
    cotangent = draw(*expected.shape, dtype=dtype, seed=2).detach()
    dx, dmus = torch.autograd.grad(expected, (wide, mus), cotangent.float())
    gradients = token_mix.mix_gradients(x.detach(), marks, mus.detach(), cotangent)
    for ours, theirs in ((found, expected), (gradients.x, dx), (gradients.mus, dmus)):
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < TOLERANCE[dtype]
