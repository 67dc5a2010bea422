"""Losses on distributions under fla's names: distillation by KL divergence, and GRPO.

Shape letters: N tokens, D channels, V classes, B rows, L tokens of a completion.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel.kernels.modules.loss import MAX_LOGITS_AT_A_TIME


def fused_kl_div_fwd(
    x: Tensor,
    target_x: Tensor,
    weight: Tensor,
    target_weight: Tensor,
    reduction: str = "batchmean",
    accumulate_grad_in_fp32: bool = True,
    use_dx: bool = True,
    use_dw: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """KL(softmax(target_x @ target_weight^T) || softmax(x @ weight^T)) / N, and its gradients.

    Args:
        x: [N, D].
        target_x: [N, D'], of the teacher.
        weight: [V, D].
        target_weight: [V, D'].
        reduction: "batchmean", the only one of fla.
        accumulate_grad_in_fp32: always so.
        use_dx: whether to return the gradient of `x`, else None.
        use_dw: whether to return the gradient of `weight`, else None.
    """
    total = x.shape[0]
    loss = x.new_zeros((), dtype=torch.float32)
    dx = torch.empty_like(x) if use_dx else None
    dw = torch.zeros_like(weight, dtype=torch.float32) if use_dw else None
    num_rows = max(1, MAX_LOGITS_AT_A_TIME // weight.shape[0])
    for first in range(0, total, num_rows):
        here = slice(first, first + num_rows)
        log_p = F.linear(x[here], weight).float().log_softmax(-1)
        log_t = F.linear(target_x[here], target_weight).float().log_softmax(-1)
        loss += F.kl_div(log_p, log_t, reduction="sum", log_target=True) / total
        dlogits = log_p.exp_().sub_(log_t.exp_()).div_(total)
        if dx is not None:
            dx[here] = dlogits.to(weight.dtype) @ weight
        if dw is not None:
            dw += dlogits.mT @ x[here].float()
    return loss, dx, None if dw is None else dw.to(weight.dtype)


def fused_kl_div_bwd(
    do: Tensor, dx: Tensor | None, dw: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients times that of the loss."""
    return None if dx is None else dx * do, None if dw is None else dw * do


def fused_grpo_loss(
    logits: Tensor,
    ref_logp: Tensor,
    input_ids: Tensor,
    advantages: Tensor,
    beta: float = 0.1,
    completion_mask: Tensor | None = None,
    save_kl: bool = False,
    inplace: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Losses [B, L] of the completions, -advantage + beta KL, and that KL too if `save_kl`.

    KL is exp(r) - r - 1 with r = ref_logp - logp; the gradient of the advantage's term is that of
    the token's probability ratio, which is 1 (Shao et al., arXiv 2402.03300).

    Args:
        logits: [B, L + 1, V]; the last token has no loss.
        ref_logp: [B, L], of the reference model.
        input_ids: [B, >= L]; the last L are the completion.
        advantages: [B].
        beta: factor of KL.
        completion_mask: [B, L], 0 for tokens without a loss.
        save_kl: see above.
        inplace: for fla's kernel.
    """
    targets = input_ids[:, -ref_logp.shape[1] :].unsqueeze(-1)
    logp = logits[:, :-1].float().log_softmax(-1).gather(-1, targets).squeeze(-1)
    ratio = ref_logp.float() - logp
    kl = ratio.exp() - ratio - 1
    loss = beta * kl - (logp - logp.detach()).exp() * advantages.unsqueeze(1)
    if completion_mask is not None:
        kept = completion_mask != 0
        loss, kl = loss.where(kept, 0.0), kl.where(kept, 0.0)
    return (loss, kl) if save_kl else loss
