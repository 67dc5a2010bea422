"""Cross-entropy in PyTorch under fla's names: over logits, and over hidden states without holding all logits at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.config.errors import UserError

LOGITS = 1 << 22
"""Most logits held at a time by `fused_linear_cross_entropy_loss`."""


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    logit_softcapping: float | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Loss and its z-loss share of every token, fp32 [N], of `logits` [N, V]; 0 where the target is `ignore_index`.

    The z-loss is lse_square_scale * logsumexp(logits)^2; the loss includes it, and it has no gradient of its own.
    """
    _refuse_group(process_group)
    z = _transform(logits.float(), logit_scale, logit_softcapping)
    loss = F.cross_entropy(
        z, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    if lse_square_scale == 0.0:
        return loss, torch.zeros_like(loss)
    z_loss = lse_square_scale * z.logsumexp(-1).square() * (target != ignore_index)
    return loss + z_loss, z_loss.detach()


def forward_cross_entropy(module: Any, input: Tensor, target: Tensor) -> Any:
    """`FusedCrossEntropyLoss.forward`, which refuses CPU tensors."""
    loss, z_loss = cross_entropy_loss(
        input,
        target,
        module.label_smoothing,
        module.logit_scale,
        module.lse_square_scale,
        module.logit_softcapping,
        module.ignore_index,
        module.inplace_backward,
        module.process_group,
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
    process_group: Any = None,
) -> Tensor:
    """Mean or sum of the cross-entropy of x @ weight^T + bias, in fp32.

    Args:
        x: [N, D] hidden states.
        target: [N].
        weight: [V, D].
        bias: [V].
        ignore_index: targets that do not count.
        label_smoothing: share of the uniform distribution in the targets.
        logit_scale: factor of the logits.
        logit_softcapping: c * tanh(logits / c) with this c, if given.
        num_chunks: of fla's kernel; here rows are taken so that at most `LOGITS` logits exist at a time.
        reduction: "mean" over targets that count, or "sum".
        use_l2warp: adds the gradient l2_penalty_factor / N * (largest logit) to the largest logit of each row.
        l2_penalty_factor: see `use_l2warp`.
        accumulate_grad_in_fp32: gradients always are.
        process_group: must be None.
    """
    _refuse_group(process_group)
    options = (ignore_index, label_smoothing, logit_scale, logit_softcapping, reduction)
    penalty = l2_penalty_factor if use_l2warp else 0.0
    return _LinearCrossEntropy.apply(x, target, weight, bias, penalty, *options)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed with the loss, rows at a time, so that logits never outlive their rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        penalty: float,
        ignore_index: int,
        smoothing: float,
        scale: float,
        cap: float | None,
        reduction: str,
    ) -> Tensor:
        num_tokens, num_classes = x.shape[0], weight.shape[0]
        total = (target != ignore_index).sum().clamp_min(1) if reduction == "mean" else 1
        learning = any(ctx.needs_input_grad)
        dx = torch.empty_like(x) if learning else None
        dw = torch.zeros_like(weight, dtype=torch.float32) if learning else None
        db = torch.zeros_like(bias, dtype=torch.float32) if learning and bias is not None else None
        loss = x.new_zeros((), dtype=torch.float32)
        for rows in torch.arange(num_tokens).split(max(1, LOGITS // num_classes)):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            with torch.enable_grad() if learning else torch.no_grad():
                raw = F.linear(
                    x[here].detach(), weight.detach(), None if bias is None else bias.detach()
                )
                logits = raw.float().detach().requires_grad_(learning)
                part, _ = cross_entropy_loss(
                    logits, target[here], smoothing, scale, 0.0, cap, ignore_index
                )
                part = part.sum() / total
            loss += part.detach()
            if dx is None or dw is None:
                continue
            (grad,) = torch.autograd.grad(part, logits)
            if penalty:
                largest, index = logits.detach().max(-1, keepdim=True)
                grad.scatter_add_(-1, index, largest * (penalty / num_tokens))
            grad = grad.to(raw.dtype)
            with torch.autocast(x.device.type, enabled=False):
                dx[here] = (grad @ weight.to(grad.dtype)).to(x.dtype)
                dw += (grad.mT @ x[here].to(grad.dtype)).float()
            if db is not None:
                db += grad.sum(0, dtype=torch.float32)
        ctx.save_for_backward(dx, dw, db)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        dw = (dw * grads[0]).to(weight_dtype)
        db = None if db is None else (db * grads[0]).to(bias_dtype)
        return (dx * grads[0]).to(dx.dtype), None, dw, db, *([None] * 6)


def _transform(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _refuse_group(process_group: Any) -> None:
    if process_group is not None:
        raise UserError(
            "a cross-entropy over a vocabulary shared between processes has no PyTorch implementation",
            remedy="set training.tensor_parallel_degree to 1, or run on a machine with a Triton device",
        )
