"""Cross-entropy in PyTorch under fla's names, and over hidden states without holding all logits.

Shape letters: N tokens, D channels, V classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fla.modules.fused_cross_entropy import FusedCrossEntropyLoss
from torch import Tensor
from torch.distributed import ProcessGroup

from flame_accel.config.errors import UserError

MAX_LOGITS_AT_A_TIME = 1 << 22
"""Most logits that `fused_linear_cross_entropy_loss` holds at a time."""


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses of all tokens and the z-losses in them, fp32 [N]; 0 where the target does not count.

    The z-loss is lse_square_scale * logsumexp(logits)^2. It is for logging and has no gradient of
    its own.

    Args:
        logits: [N, V].
        target: [N].
        label_smoothing: share of the uniform distribution in the targets.
        logit_scale: factor of the logits.
        lse_square_scale: factor of the z-loss.
        logit_softcapping: if given, logits become c * tanh(logits / c) after the scaling.
        ignore_index: target of the tokens that do not count.
        inplace_backward: for fla's kernel.
        process_group: must be None: every process holds the whole vocabulary.
    """
    _check_no_process_group(process_group)
    z = logits.float()
    if logit_scale != 1.0:
        z = z * logit_scale
    if logit_softcapping is not None:
        z = logit_softcapping * torch.tanh(z / logit_softcapping)
    loss = F.cross_entropy(
        z, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    if lse_square_scale == 0.0:
        return loss, torch.zeros_like(loss)
    z_loss = lse_square_scale * z.logsumexp(-1).square() * (target != ignore_index)
    return loss + z_loss, z_loss.detach()


def forward_cross_entropy(
    module: FusedCrossEntropyLoss, input: Tensor, target: Tensor
) -> Tensor | tuple[Tensor, Tensor]:
    """`FusedCrossEntropyLoss.forward`, which refuses CPU tensors: the loss, maybe its z-loss."""
    loss, z_loss = cross_entropy_loss(
        input,
        target,
        label_smoothing=module.label_smoothing,
        logit_scale=module.logit_scale,
        lse_square_scale=module.lse_square_scale,
        logit_softcapping=module.logit_softcapping,
        ignore_index=module.ignore_index,
        process_group=module.process_group,
    )
    if module.reduction != "none":
        total = (target != module.ignore_index).sum() if module.reduction == "mean" else 1
        loss, z_loss = loss.sum() / total, z_loss.sum() / total
    return (loss, z_loss) if module.return_z_loss else loss


def fused_linear_cross_entropy_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcapping: float | None = None,
    num_chunks: int = 8,
    reduction: str = "mean",
    use_l2warp: bool = False,
    l2_penalty_factor: float = 1e-4,
    accumulate_grad_in_fp32: bool = True,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Mean (over the targets that count) or sum of the cross-entropy of x @ weight^T + bias, fp32.

    Args:
        x: [N, D] hidden states.
        target: [N].
        weight: [V, D].
        bias: [V].
        ignore_index: see `cross_entropy_loss`, as for the next three.
        label_smoothing: same.
        logit_scale: same.
        logit_softcapping: same.
        num_chunks: of fla's kernel; here at most `MAX_LOGITS_AT_A_TIME` logits exist at a time.
        reduction: "mean" or "sum".
        use_l2warp: adds l2_penalty_factor / N * (largest logit) to its gradient in every row.
        l2_penalty_factor: see `use_l2warp`.
        accumulate_grad_in_fp32: they always are.
        process_group: must be None.
    """
    _check_no_process_group(process_group)
    total = (target != ignore_index).sum().clamp_min(1) if reduction == "mean" else 1
    penalty = l2_penalty_factor / x.shape[0] if use_l2warp else 0.0
    losses_and_z_losses_of_logits = partial(
        cross_entropy_loss,
        label_smoothing=label_smoothing,
        logit_scale=logit_scale,
        logit_softcapping=logit_softcapping,
        ignore_index=ignore_index,
    )
    return _ChunkedLinearCrossEntropy.apply(
        x, target, weight, bias, total, penalty, losses_and_z_losses_of_logits
    )


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Gradients come with the loss, some rows at a time: logits do not outlive their rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss_divisor: Tensor | int,
        l2warp_factor: float,
        losses_and_z_losses_of_logits: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        learning = any(ctx.needs_input_grad)
        loss = x.new_zeros((), dtype=torch.float32)
        dx = torch.empty_like(x)
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        dbias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        num_rows = max(1, MAX_LOGITS_AT_A_TIME // weight.shape[0])
        for first in range(0, x.shape[0], num_rows):
            here = slice(first, first + num_rows)
            logits = F.linear(x[here], weight, bias).requires_grad_(learning)
            with torch.set_grad_enabled(learning):
                part = losses_and_z_losses_of_logits(logits, target[here])[0].sum() / loss_divisor
            loss += part.detach()
            if not learning:
                continue
            (dlogits,) = torch.autograd.grad(part, logits)
            if l2warp_factor:
                largest, index = logits.detach().max(-1, keepdim=True)
                dlogits.scatter_add_(-1, index, largest * l2warp_factor)
            dx[here] = dlogits @ weight
            dweight += dlogits.mT @ x[here]
            if dbias is not None:
                dbias += dlogits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(dx, dweight, dbias)
        ctx.dtypes = (weight.dtype, weight.dtype if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = ctx.saved_tensors
        dx = (dx * grads[0]).to(dx.dtype)
        dweight = (dweight * grads[0]).to(ctx.dtypes[0])
        dbias = None if dbias is None else (dbias * grads[0]).to(ctx.dtypes[1])
        return dx, None, dweight, dbias, None, None, None


def _check_no_process_group(process_group: ProcessGroup | None) -> None:
    if process_group is not None:
        raise UserError(
            "a cross-entropy over a vocabulary that processes share needs a Triton device",
            remedy="set training.tensor_parallel_degree to 1, or use a GPU",
        )
