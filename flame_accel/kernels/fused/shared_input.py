"""Linear maps that share their input: their products add up its gradient, and nothing else does.

Queries, keys, values and gates of a layer are products with the same hidden states, whose gradient
is a sum over all of them. PyTorch writes each summand and adds them in passes of their own; here
each product after the first adds to what is there. Gradients of fp32 weights are not rounded to
bf16 on their way. Shape letters: N tokens, D channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flame_accel.kernels.fused.replace import fused_kernels_are_allowed, fused_kernels_are_installed

NAMES = (
    "q_proj", "k_proj", "v_proj", "g_proj", "a_proj", "b_proj", "f_proj", "gk_proj",
    "gate_proj", "up_proj",
)  # fmt: skip
"""Of maps that may share their input, in the layers of fla; of several maps in a row, the first."""


class _LinearMaps(torch.autograd.Function):
    """x W^T for each weight [.., D]; x [N, D] in the dtype of the products, autocast off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        weights = tuple(weight.to(x.dtype) for weight in weights)
        ctx.save_for_backward(x, *weights)
        return tuple(torch.mm(x, weight.t()) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needs_dx, *need_dweights = ctx.needs_input_grad
        dx: Tensor | None = None
        dweights: list[Tensor | None] = [None] * len(weights)
        for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            if grad is None:
                continue
            if needs_dx:
                dx = torch.mm(grad, weight) if dx is None else dx.addmm_(grad, weight)
            if need_dweights[i]:
                dweights[i] = _matmul_into_dtype(grad.t(), x, ctx.dtypes[i])
        return dx, *dweights


def _matmul_into_dtype(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """The product in a dtype, which is that of its sums if it is fp32."""
    if a.is_cuda and out_dtype is torch.float32 and a.dtype is not torch.float32:
        return torch.mm(a, b, out_dtype=out_dtype)
    return torch.mm(a, b).to(out_dtype)


class _Computed(NamedTuple):
    """Results for maps that have not been called yet."""

    x: Tensor
    """The input that they are of."""
    results: dict[nn.Linear, Tensor]


class _SharedInput:
    """Computes the results of all its maps when the first is called; one for each layer.

    A map that is not called with the same tensor leaves: it has another input, or is not used.
    """

    def __init__(self, maps: Sequence[nn.Linear]) -> None:
        self.maps = list(maps)
        self.computed: _Computed | None = None

    def forward(self, called: nn.Linear, x: Tensor) -> Tensor:
        """The result of one of the maps; stands in for its own forward."""
        if not (
            fused_kernels_are_allowed()
            and _grad_enabled_on_gpu_without_hooks_or_shards(self.maps, x)
        ):
            return nn.Linear.forward(called, x)
        computed = self.computed
        if computed is not None and computed.x is not x and called in computed.results:
            # a result that it does not want: its input is another one
            self._leave_out([called])
        if called not in self.maps:
            return nn.Linear.forward(called, x)
        if computed is None or computed.x is not x:
            # nobody has wanted what is left of the last pass
            self._leave_out([] if computed is None else list(computed.results))
            self.computed = computed = _Computed(x, self._compute_all(x))
        result = computed.results.pop(called, None)
        if not computed.results:
            self.computed = None
        return nn.Linear.forward(called, x) if result is None else result

    def _leave_out(self, maps: Sequence[nn.Linear]) -> None:
        self.maps = [linear for linear in self.maps if linear not in maps]
        for linear in maps:
            if self.computed is not None:
                self.computed.results.pop(linear, None)

    def _compute_all(self, x: Tensor) -> dict[nn.Linear, Tensor]:
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            rows = x.to(dtype).reshape(-1, x.shape[-1])
            results = _LinearMaps.apply(rows, *(linear.weight for linear in self.maps))
        shape = x.shape[:-1]
        return {m: y.view(*shape, -1) for m, y in zip(self.maps, results, strict=True)}


def _grad_enabled_on_gpu_without_hooks_or_shards(maps: Sequence[nn.Linear], x: Tensor) -> bool:
    """Whether a call trains on a GPU with weights that no hook has to gather."""
    hooks = any(m._forward_pre_hooks or m._forward_hooks for m in maps)
    sharded = any(isinstance(m.weight, DTensor) for m in maps)
    return torch.is_grad_enabled() and x.is_cuda and not (hooks or sharded)


def share_inputs_of_linear_maps(model: nn.Module, *, compiled: bool, recomputed: bool) -> None:
    """Joins the maps of each layer that have the names and the shape for it, in place.

    Nothing is joined without the fused kernels, nor in blocks that are compiled or recomputed in
    the backward pass: a forward pass has to call all maps of a layer.
    """
    if compiled or recomputed or not fused_kernels_are_installed():
        return
    for module in model.modules():
        children = [getattr(module, name, None) for name in NAMES]
        firsts = [c[0] if isinstance(c, nn.Sequential) and len(c) else c for c in children]
        maps = [m for m in firsts if type(m) is nn.Linear and m.bias is None]
        maps = [m for m in maps if m.in_features == maps[0].in_features]
        if len(maps) > 1:
            shared = _SharedInput(maps)
            for linear in maps:
                vars(linear)["forward"] = partial(shared.forward, linear)
