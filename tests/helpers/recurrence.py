"""Runs recurrent operators and layers in several ways that must agree, and compares the results."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fla.models.utils import Cache
from torch import Tensor, nn

from flame_accel import kernels
from tests.helpers.gradients import assert_close, flatten

B, T, H, K, V = 2, 45, 2, 16, 24
"""Sizes of the fixture `qkv`: batch, tokens, heads, key width, value width."""
LENGTHS = (1, 40, 93, 1, 66, 5)
"""Tokens of the documents of a packed row."""
LOG_DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda r: -0.1 * r,
    "none": lambda r: 0.0 * r,
    "spread": lambda r: -20.0 * r.square(),
    "resets": lambda r: torch.where(r > 0.9, -200.0, -0.01 * r),
}
"""Log decays from numbers between 0 and 1."""


def boundaries(lengths: Sequence[int] = LENGTHS) -> Tensor:
    """`cu_seqlens` of documents of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def unit(*shape: int) -> Tensor:
    """Random vectors of length 1."""
    return F.normalize(torch.randn(*shape), dim=-1)


def head_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """References of fla that take [B, H, T, ...]."""

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, h = tensors
        o, state = function(*(x.transpose(1, 2) for x in inputs), initial_state=h)
        return o.transpose(1, 2), state

    return call


def with_normalized(function: Callable[..., Any], *indices: int) -> Callable[..., Any]:
    """`function` with the arguments at `indices` divided by their l2 norms, as fla does it."""

    def call(*tensors: Tensor) -> Any:
        return function(
            *(
                x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() if i in indices else x
                for i, x in enumerate(tensors)
            )
        )

    return call


def with_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the initial state as its last argument; it returns the final one too."""

    def call(*tensors: Tensor, **options: Any) -> Any:
        *inputs, state = tensors
        return function(*inputs, initial_state=state, output_final_state=True, **options)

    return call


def token_by_token(function: Callable[..., Any], num_tokens: int) -> Callable[..., Any]:
    """Calls `function(*inputs, state)` for one token after the other."""

    def call(*tensors: Any) -> Any:
        *inputs, state = tensors
        outputs = []
        for t in range(num_tokens):
            o, state = function(*(None if x is None else x[:, t : t + 1] for x in inputs), state)
            outputs.append(o)
        return torch.cat(outputs, 1), state

    return call


def flipped(function: Callable[..., Any], num_inputs: int) -> Callable[..., Any]:
    """Passes the first arguments from the last token to the first, with `reverse=True`."""

    def call(*tensors: Any) -> Any:
        inputs = (x.flip(1) for x in tensors[:num_inputs])
        o, state = function(*inputs, *tensors[num_inputs:], reverse=True)
        return o.flip(1), state

    return call


def document_by_document(
    function: Callable[..., Any], lengths: Sequence[int] = LENGTHS
) -> Callable[..., Any]:
    """Calls `function(*inputs, states)` for each document of a packed row, states as a list."""

    def call(*tensors: Any) -> Any:
        *inputs, states = tensors
        documents = zip(
            *([None] * len(lengths) if x is None else x.split(lengths, 1) for x in inputs),
            strict=True,
        )
        states = zip(*(s.split(1) for s in flatten(states)), strict=True)
        results = [
            flatten(function(*document, list(state)))
            for document, state in zip(documents, states, strict=True)
        ]
        outputs, *finals = zip(*results, strict=True)
        return torch.cat(outputs, 1), *(torch.cat(final) for final in finals)

    return call


def outputs_with_cache(layer: nn.Module, x: Tensor, first: int) -> Tensor:
    """Outputs of a layer for `first` tokens of x [B, T, D], then for one token after the other."""
    cache, outputs = Cache(), []
    with torch.no_grad():
        for part in x.split([first] + [1] * (x.shape[1] - first), 1):
            result = layer(hidden_states=part, past_key_values=cache, use_cache=True)
            outputs.append(result[0])
    return torch.cat(outputs, 1)


def assert_cached_tokens_equal_one_pass(
    layer: nn.Module, tokens: int = 40, first: int = 20, hidden_size: int = 32
) -> None:
    """In one call of `first` tokens and then one by one."""
    x = torch.randn(2, tokens, hidden_size)
    with torch.no_grad():
        expected = layer(hidden_states=x)[0]
    o = outputs_with_cache(layer, x, first)
    assert_close([o], [expected], 1e-5, 1e-12)
    assert torch.allclose(o, expected, atol=1e-5)


def assert_packed_documents_are_apart(layer: nn.Module, hidden_size: int = 32) -> None:
    """Equal to separate ones, and to the bit independent of what their neighbours hold."""
    x, cu_seqlens = torch.randn(1, sum(LENGTHS), hidden_size), boundaries()
    o = layer(hidden_states=x, cu_seqlens=cu_seqlens)[0]
    separate = torch.cat([layer(hidden_states=part)[0] for part in x.split(LENGTHS, 1)], 1)
    assert_close([o], [separate], 1e-6, 1e-12)
    assert torch.allclose(o, separate, atol=1e-5)
    first, last = 41, 134
    x[:, :first] = torch.randn_like(x[:, :first])
    x[:, last:] = 7.0
    changed = layer(hidden_states=x, cu_seqlens=cu_seqlens)[0]
    assert not torch.equal(changed[:, :first], o[:, :first])
    assert torch.equal(changed[:, first:last], o[:, first:last])


def assert_every_parameter_gets_a_gradient(layer: nn.Module, hidden_size: int = 32) -> None:
    layer(torch.randn(2, 80, hidden_size))[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def perturbed(build: Callable[[], nn.Module]) -> nn.Module:
    """A seeded layer whose parameters are not at their initial values."""
    torch.manual_seed(1)
    layer = build()
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return layer


def fla_method(layer: type, name: str) -> Any:
    """The method of a layer as fla has it, where `kernels.install("torch")` has replaced it."""
    kernels.uninstall()
    original = getattr(layer, name)
    kernels.install("torch")
    return original
