"""Layers of fla that only run, or only keep apart what is apart, with functions of ours in them."""

from collections.abc import Iterator

import pytest
import torch
from fla.layers.log_linear_mamba2 import LogLinearMamba2
from fla.layers.mom import MomAttention
from fla.layers.momentum_deltanet import MomentumDeltaNet
from fla.models.utils import Cache
from torch import nn

from flame_accel import kernels
from flame_accel.kernels.recurrence.mom import transform

LENGTHS = (1, 40, 93, 2, 30)
EDGES = torch.tensor([0, *LENGTHS]).cumsum(0)
FIRST, LAST = 41, 134


@pytest.fixture(autouse=True, scope="module")
def installed() -> Iterator[None]:
    kernels.install("torch")
    yield
    kernels.uninstall()
    kernels.install()


def mom(**options: bool) -> nn.Module:
    torch.manual_seed(0)
    return MomAttention(
        hidden_size=32, head_dim=16, num_heads=2, num_memories=4, layer_idx=0, **options
    )


def log_linear() -> nn.Module:
    torch.manual_seed(0)
    return LogLinearMamba2(num_heads=2, head_dim=32, hidden_size=32, state_size=16, layer_idx=0)


def momentum() -> nn.Module:
    torch.manual_seed(0)
    return MomentumDeltaNet(hidden_size=32, head_dim=16, num_heads=2, layer_idx=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared_mem", [True, False])
def test_mom_is_causal_and_keeps_rows_apart(training: bool, shared_mem: bool):
    layer, x = mom(shared_mem=shared_mem).train(training), torch.randn(2, 150, 32)
    changed = x.clone()
    changed[0, 100:] += 1.0
    o, o_changed = layer(x)[0], layer(changed)[0]
    assert layer.training == training
    assert torch.allclose(o_changed[0, :100], o[0, :100], atol=1e-5)
    assert torch.allclose(o_changed[1], o[1], atol=1e-5)
    assert not torch.allclose(o_changed[0, 100:], o[0, 100:], atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [mom, log_linear])
def test_packed_documents_are_apart(build, training: bool):
    layer, x = build().train(training), torch.randn(1, sum(LENGTHS), 32)
    o = layer(x, cu_seqlens=EDGES)[0]
    separate = torch.cat([layer(part)[0] for part in x.split(LENGTHS, 1)], 1)
    assert torch.allclose(o, separate, atol=1e-5)
    changed = torch.randn(x.shape)
    changed[:, FIRST:LAST] = x[:, FIRST:LAST]
    o_changed = layer(changed, cu_seqlens=EDGES)[0]
    assert torch.equal(o_changed[:, FIRST:LAST], o[:, FIRST:LAST])
    assert not torch.equal(o_changed[:, :FIRST], o[:, :FIRST])


@pytest.mark.parametrize("build", [mom, log_linear, momentum])
def test_cached_tokens_equal_the_whole(build):
    layer, x = build().eval(), torch.randn(2, 80, 32)
    with torch.no_grad():
        expected, cache = layer(x)[0], Cache()
        outputs = [layer(x[:, :60], past_key_values=cache, use_cache=True)[0]]
        for t in range(60, 80):
            now = slice(t, t + 1)
            outputs.append(layer(x[:, now], past_key_values=cache, use_cache=True)[0])
    assert torch.allclose(torch.cat(outputs, 1), expected, atol=1e-5)


@pytest.mark.parametrize("build", [mom, log_linear, momentum])
def test_every_parameter_gets_a_gradient(build):
    layer = build().train()
    layer(torch.randn(2, 80, 32))[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_every_memory_gets_its_tokens_in_order():
    torch.manual_seed(0)
    batch, tokens, memories, chosen = 3, 200, 5, 2
    selected = torch.rand(batch, tokens, memories).topk(chosen).indices
    selected = torch.where(selected == 4, 0, selected)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[1, :30] = False
    time = torch.arange(tokens).view(1, -1, 1).expand(batch, -1, -1)
    x = torch.cat((time, torch.arange(batch).view(-1, 1, 1).expand(-1, tokens, -1)), -1)
    dealt, _, order, longest, held, by_memory = transform(x, selected, memories, selected, mask)
    for memory in range(memories):
        for row in range(batch):
            expected = [
                [t, row]
                for t in range(tokens)
                for choice in selected[row, t].tolist()
                if choice == memory and mask[row, t]
            ]
            assert dealt[memory, row][by_memory[memory, row]].tolist() == expected
    assert held.sum(-1).max() == longest
    assert torch.equal(order.sort().values, torch.arange(batch * tokens * chosen))
