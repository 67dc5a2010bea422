"""References of recurrent operators for `oracle`: fla's own, and recurrences token by token.

A reference takes the arguments of equally long sequences by name, and computes in the dtype that it
is given. What fla's references leave out (a scale, grouped heads, options) is done to their inputs.
"""

import torch
import torch.nn.functional as F
from fla.ops.abc.naive import naive_recurrent_abc
from fla.ops.based.naive import naive_parallel_based
from fla.ops.cyfa.naive import naive_recurrent_cyfa
from fla.ops.cyfa.utils import _readout_basis
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gdn2.naive import naive_recurrent_gdn2
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.generalized_delta_rule.iplr.naive import iplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.gsa.naive import naive_recurrent_gsa
from fla.ops.hgrn.naive import naive_recurrent_hgrn
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.log_linear_attn.naive import naive_log_linear_attn
from fla.ops.mesa_net.naive import naive_mesa_net_exact
from fla.ops.momentum_delta_rule.naive import recurrent_momentum_delta_rule_ref
from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
from fla.ops.precond_kda.naive import naive_recurrent_precond_kda
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.simple_gla.naive import naive_parallel_simple_gla, naive_recurrent_simple_gla
from fla.ops.ttt.naive import chunk_ttt_linear_ref
from torch import Tensor

from tests.helpers.oracle import Result
from tests.helpers.parity import Arguments


def _scaled(a: Arguments, name: str = "q") -> Tensor:
    """Queries for a reference that multiplies them by 1 / sqrt(K) and takes no other scale."""
    width = a[name].shape[-1]
    return a[name] if a["scale"] is None else a[name] * (a["scale"] * width**0.5)


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def _l2norm(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def _normed_by_option(a: Arguments, *names: str) -> list[Tensor]:
    return [_l2norm(a[name]) if a["use_qk_l2norm_in_kernel"] else a[name] for name in names]


def _repeated(x: Tensor, heads: int, dimension: int = 2) -> Tensor:
    return x.repeat_interleave(heads // x.shape[dimension], dimension)


def _strengths(a: Arguments, like: Tensor) -> Tensor:
    """[B, T, G]; 1 if none are given."""
    beta = a.get("beta")
    if beta is None:
        return torch.ones_like(like[..., 0])
    if a.get("use_beta_sigmoid_in_kernel"):
        beta = beta.sigmoid() * (2 if a.get("allow_neg_eigval") else 1)
    return beta


def cumsum(a: Arguments) -> Result:
    scale = 1 if a["scale"] is None else a["scale"]
    return Result([a["s"].cumsum(1) * scale])


def gla(a: Arguments) -> Result:
    gk, gv = a.get("gk", a.get("g")), a.get("gv")
    gk = torch.zeros_like(a["k"]) if gk is None else gk
    if gv is not None:
        return _gla_with_value_decays(a, gk, gv)
    o, h = naive_recurrent_gla(_scaled(a), a["k"], a["v"], gk, a["initial_state"], True)
    return Result([o], [h])


def _gla_with_value_decays(a: Arguments, gk: Tensor, gv: Tensor) -> Result:
    h, q, outputs = a["initial_state"], _scaled(a) * a["q"].shape[-1] ** -0.5, []
    for t in range(q.shape[1]):
        h = h * gk[:, t].exp().unsqueeze(-1) * gv[:, t].exp().unsqueeze(-2)
        h = h + a["k"][:, t].unsqueeze(-1) * a["v"][:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-1) * h).sum(-2))
    return Result([torch.stack(outputs, 1)], [h])


def _head_log_decay(a: Arguments) -> Tensor:
    """Of `g` [B, T, H] and `g_gamma` [H]."""
    g = torch.zeros_like(a["k"][..., 0])
    for name in ("g", "g_gamma"):
        g = g if a.get(name) is None else g + a[name]
    return g


def simple_gla(a: Arguments) -> Result:
    o, h = naive_recurrent_simple_gla(
        a["q"], a["k"], a["v"], _head_log_decay(a), a["scale"], a["initial_state"], True
    )
    return Result([o], [h])


def parallel_simple_gla(a: Arguments) -> Result:
    o, scores = naive_parallel_simple_gla(a["q"], a["k"], a["v"], _head_log_decay(a), a["scale"])
    return Result([o, scores.detach()] if a["output_attentions"] else [o])


def linear_attention(a: Arguments) -> Result:
    past = (a["h_kv"], a["z"]) if a["normalize"] else a["h_kv"]
    names = ("q", "k", "v", "scale")
    o, state = naive_recurrent_linear_attn(*(a[name] for name in names), past, True, a["normalize"])
    return Result([o], [*state] if a["normalize"] else [state])


def retention(a: Arguments) -> Result:
    gamma = (1 - 2.0 ** (-5 - torch.arange(a["q"].shape[2]))).log()
    reference = parallel_simple_gla if "output_attentions" in a else simple_gla
    return reference({**a, "g_gamma": gamma})


def lightning_attention(a: Arguments) -> Result:
    heads = a["q"].shape[2]
    slope = 8 / heads * (1 - a["layer_idx"] / a["num_layers"])
    return simple_gla({**a, "g_gamma": -slope * torch.arange(heads)})


def hgrn(a: Arguments) -> Result:
    o, h = naive_recurrent_hgrn(a["x"], a["g"], a["initial_state"], True)
    return Result([o], [h])


def gsa(a: Arguments) -> Result:
    s, g = a["s"], a["g"]
    if g is None:
        # from the first token to the last, whichever way the states are run
        s = s.flip(1) if a.get("reverse") else s
        past = torch.full_like(s[:, :1], -torch.inf)
        s, g = additive_gate({"x": s, "initial_state": past}).per_token
        s, g = (x.flip(1) if a.get("reverse") else x for x in (s, g))
    o, states = naive_recurrent_gsa(
        a["q"], a["k"], a["v"], s, g, a["scale"], (a["h_k"], a["h_v"]), True
    )
    return Result([o], [*states])


def additive_gate(a: Arguments) -> Result:
    log_sums = torch.cat((a["initial_state"], a["x"]), 1).logcumsumexp(1)
    before, z = log_sums[:, :-1], log_sums[:, 1:]
    g = torch.where(before.isneginf(), 0.0, before - z)
    return Result([(a["x"] - z).exp(), g], [z[:, -1:]])


def abc(a: Arguments) -> Result:
    slots, g = additive_gate({"x": a["s"], "initial_state": a["z"]}).per_token
    o, states = naive_recurrent_abc(
        *_heads_first(a["q"], a["k"], a["v"], slots, g),
        initial_state=(a["h_k"], a["h_v"]), output_final_state=True,
    )  # fmt: skip
    z = torch.cat((a["z"], a["s"]), 1).logsumexp(1, keepdim=True)
    return Result([o.transpose(1, 2)], [*states, z])


def rwkv6(a: Arguments) -> Result:
    inputs = _heads_first(a["r"], a["k"], a["v"], a["w"])
    o, h = naive_recurrent_rwkv6(*inputs, a["u"], a["scale"], a["initial_state"], True)
    return Result([o.transpose(1, 2)], [h])


def based(a: Arguments) -> Result:
    inputs = _heads_first(a["q"], a["k"], a["v"])
    return Result([naive_parallel_based(*inputs, a["scale"], a["use_norm"]).transpose(1, 2)])


def rebased(a: Arguments) -> Result:
    q, k, v = _heads_first(a["q"], a["k"], a["v"])
    scores = (q @ k.mT * (q.shape[-1] ** -0.5 if a["use_scale"] else 1)).square().tril()
    o, z = scores @ v, scores.sum(-1)
    if a["return_both"]:
        return Result([o, z])
    if a["use_normalize"]:
        o = o / (z.unsqueeze(-1) + a["eps"])
    return Result([o.transpose(1, 2)])


def delta_rule(a: Arguments) -> Result:
    q, k = _normed_by_option(a, "q", "k")
    inputs = _heads_first(_scaled({**a, "q": q}), k, a["v"], _strengths(a, a["v"]))
    o, h = delta_rule_recurrence(*inputs, a["initial_state"], True)
    return Result([o.transpose(1, 2)], [h])


def _gdn_gated(a: Arguments) -> Tensor | None:
    g = a["g"]
    return naive_gdn_gate(g, a["A_log"], a.get("dt_bias")) if a.get("use_gate_in_kernel") else g


def gated_delta_rule(a: Arguments) -> Result:
    heads = a["v"].shape[2]
    q, k = (_repeated(x, heads) for x in _normed_by_option(a, "q", "k"))
    g, beta = _gdn_gated(a), _strengths(a, a["v"])
    if a.get("gk") is not None:
        decays = a["gk"] if g is None else a["gk"] + g.unsqueeze(-1)
        o, h = naive_recurrent_kda(q, k, a["v"], decays, beta, a["scale"], a["initial_state"], True)
    else:
        g = torch.zeros_like(beta) if g is None else g
        o, h = naive_recurrent_gated_delta_rule(
            q, k, a["v"], beta, g, a["scale"], a["initial_state"], True
        )
    return Result([o], [h])


def gated_delta_product(a: Arguments) -> Result:
    q, k = _normed_by_option(a, "q", "k")
    scale = q.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    o, h = naive_recurrent_gated_delta_product(
        q, k, a["v"], a["g"], a["beta"], scale, None, a["initial_state"], True,
        a["num_householder"],
    )  # fmt: skip
    return Result([o], [h])


def comba(a: Arguments) -> Result:
    names = ("q", "k") if a["p"] is None else ("q", "k", "p")
    heads = a["v"].shape[2]
    q, k, *p = (_repeated(x, heads) for x in _normed_by_option(a, *names))
    erase = p[0] if p else k
    beta, q = _strengths(a, a["v"]), q * (k.shape[-1] ** -0.5 if a["scale"] is None else a["scale"])
    h, outputs = a["initial_state"], []
    for t in range(q.shape[1]):
        error = a["v"][:, t] - (h * erase[:, t].unsqueeze(-1)).sum(-2)
        written = (beta[:, t].unsqueeze(-1) * error).unsqueeze(-2)
        h = h * a["g"][:, t, :, None, None].exp() + k[:, t].unsqueeze(-1) * written
        outputs.append((q[:, t].unsqueeze(-1) * h).sum(-2))
    return Result([torch.stack(outputs, 1)], [h])


def oja(a: Arguments) -> Result:
    heads = a["v"].shape[2]
    q, k = (
        _repeated(_l2norm(a[name]) if a[f"use_{name}_l2norm"] else a[name], heads)
        for name in ("q", "k")
    )
    v, beta, gv = a["v"], _strengths(a, a["v"]), a["gv"]
    gv = torch.zeros_like(v) if gv is None else gv
    h, outputs = a["initial_state"], []
    q = q * (k.shape[-1] ** -0.5 if a["scale"] is None else a["scale"])
    for t in range(q.shape[1]):
        h = h * gv[:, t].exp().unsqueeze(-2)
        error = k[:, t] - (h * v[:, t].unsqueeze(-2)).sum(-1)
        h = h + (beta[:, t, :, None] * error).unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-1) * h).sum(-2))
    return Result([torch.stack(outputs, 1)], [h])


def ttt(a: Arguments) -> Result:
    # fla's reference scales queries in place
    o, *states = chunk_ttt_linear_ref(
        1 * a["q"], *(a[name] for name in ("k", "v", "w", "b", "eta", "scale", "eps")),
        a["chunk_size"], a["initial_state"], a["initial_state_bias"], True,
    )  # fmt: skip
    return Result([o], states)


def rwkv4(a: Arguments) -> Result:
    alpha, beta, largest = (x.squeeze(1) for x in a["state"].unbind(1))
    numerator, denominator = alpha * largest.exp(), beta * largest.exp()
    outputs = []
    for t in range(a["k"].shape[1]):
        k, v = a["k"][:, t], a["v"][:, t]
        own = (a["u"] + k).exp()
        outputs.append((numerator + own * v) / (denominator + own))
        numerator = numerator * (-a["w"].exp()).exp() + k.exp() * v
        denominator = denominator * (-a["w"].exp()).exp() + k.exp()
    return Result([torch.stack(outputs, 1)], [numerator, denominator])


def mesa(a: Arguments) -> Result:
    q, k = _normed_by_option(a, "q", "k")
    inputs = (q, k, a["v"], a["g"], a["lamb"], a["beta"])
    o, *states = naive_mesa_net_exact(*inputs, a["h_kk_init"], a["h_kv_init"])
    return Result([o], states)


def mesa_step(a: Arguments) -> Result:
    written, decay = (a["k"] * a["beta"].unsqueeze(-1)).unsqueeze(-1), a["g"].exp()[..., None, None]
    h_kk = a["prev_h_kk"] * decay + written * a["k"].unsqueeze(-2)
    h_kv = a["prev_h_kv"] * decay + written * a["v"].unsqueeze(-2)
    matrix = h_kk + torch.diag_embed(a["lamb"])
    q = a["q"].unsqueeze(-1)
    x = q / matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    r = p = q - matrix @ x
    for _ in range(a["max_CG_iteration"]):
        squares = r.mT @ r
        step = squares / (p.mT @ matrix @ p).clamp_min(1e-30)
        x, r = x + step * p, r - step * (matrix @ p)
        p = r + (r.mT @ r / squares.clamp_min(1e-30)) * p
    return Result([(x * h_kv).sum(-2), h_kk, h_kv])


def momentum(a: Arguments) -> Result:
    p = a["k"] if a["p"] is None else a["p"]
    q, k, p = _normed_by_option({**a, "p": p}, "q", "k", "p")
    if a["use_p_times_alpha"]:
        p = p * a["log_alpha"].exp().unsqueeze(-1)
    ones = torch.ones_like(a["log_alpha"])
    beta, eta = (ones if a[name] is None else a[name] for name in ("beta", "eta"))
    o, states = recurrent_momentum_delta_rule_ref(
        q, k, a["v"], a["log_alpha"], a["log_mu"], p, beta, eta, a["scale"],
        *a["initial_state"], True,
    )  # fmt: skip
    return Result([o], [states])


def preconditioned_delta_rule(a: Arguments) -> Result:
    if a.get("gk") is not None or not a["use_qk_l2norm_in_kernel"]:
        return preconditioned_kda(a)
    g = torch.zeros_like(a["v"][..., 0]) if a["g"] is None else a["g"]
    o, *states = naive_recurrent_precond_gated_delta_rule(
        a["q"], a["k"], a["v"], a["g_atk"], g, a["beta_atk"], _strengths(a, a["v"]), a["scale"],
        a["initial_state"], a["initial_A_state"], True, a["x"], a["eps"], a["log_atk_scale"],
    )  # fmt: skip
    return Result([o], states)


def preconditioned_kda(a: Arguments) -> Result:
    heads = a["v"].shape[2]
    q, k = (a[name] for name in ("q", "k"))
    if a.get("use_qk_l2norm_in_kernel", True):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    g = a["g"]
    if a.get("use_gate_in_kernel"):
        g = kda_gate_values(a)
    elif a.get("gk") is not None:
        g = a["gk"] if g is None else a["gk"] + g.unsqueeze(-1)
    elif g is None or g.dim() == 3:
        g = torch.zeros_like(a["v"][..., :1]) if g is None else g.unsqueeze(-1)
        g = g.expand(*g.shape[:3], k.shape[-1])
    center = a["log_atk_scale"]
    if isinstance(center, Tensor):
        center = _repeated(center, heads, 0)
    beta = _strengths(a, a["v"])
    q, k, g_atk, beta_atk = (_repeated(x, heads) for x in (q, k, a["g_atk"], a["beta_atk"]))
    o, state, scaling = naive_recurrent_precond_kda(
        q, k, a["v"], g, g_atk, beta_atk, beta, a["scale"], a["initial_state"],
        _repeated(a["initial_A_state"], heads, 1), True, a["x"], a["eps"], center,
    )  # fmt: skip
    return Result([o], [state, scaling[:, :: heads // a["k"].shape[2]]])


def kda_gate_values(a: Arguments) -> Tensor:
    if a.get("lower_bound") is None:
        return naive_kda_gate(a["g"], a["A_log"], a.get("dt_bias"))
    return naive_kda_lowerbound_gate(a["g"], a["A_log"], a.get("dt_bias"), a["lower_bound"])


def kda_gate(a: Arguments) -> Result:
    return Result([kda_gate_values(a)])


def gdn_gate(a: Arguments) -> Result:
    return Result([naive_gdn_gate(a["g"], a["A_log"], a.get("dt_bias"))])


def kda(a: Arguments) -> Result:
    q, k = _normed_by_option(a, "q", "k")
    g = kda_gate_values(a) if a["use_gate_in_kernel"] else a["g"]
    beta = _strengths(a, a["v"])
    o, h = naive_recurrent_kda(q, k, a["v"], g, beta, a["scale"], a["initial_state"], True)
    return Result([o], [h])


def gdn2(a: Arguments) -> Result:
    heads = a["v"].shape[2]
    q, k = (_repeated(x, heads) for x in _normed_by_option(a, "q", "k"))
    g = kda_gate_values(a) if a["use_gate_in_kernel"] else a["g"]
    o, h = naive_recurrent_gdn2(
        q, k, a["v"], g, a["b"], a["w"], a["scale"], a["initial_state"], True
    )
    return Result([o], [h])


def cyfa(a: Arguments) -> Result:
    names = (
        "q", "k", "v", "g", "delta", "beta", "readout", "q_norm_weight", "k_norm_weight",
        "q_norm_eps", "k_norm_eps", "scale",
    )  # fmt: skip
    state = (a["h_k"], a["h_v"], a["h_phase"])
    # fla keeps its basis for each device, in whatever precision it was made
    _readout_basis.cache_clear()
    o, states = naive_recurrent_cyfa(*(a[name] for name in names), state, True)
    _readout_basis.cache_clear()
    return Result([o], [*states])


def log_linear(a: Arguments) -> Result:
    tokens, scale = a["q"].shape[1], a["scale"]
    if tokens > 1:
        names = ("q", "k", "v", "g", "level_scales")
        return Result([naive_log_linear_attn(*(a[name] for name in names), scale)])
    # fla's matrix has no logarithm of one token
    q, k = (_repeated(a[name], a["v"].shape[2]) for name in ("q", "k"))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    own = (q * k).sum(-1, keepdim=True) * scale * a["level_scales"][..., :1]
    return Result([own * a["v"]])


def _dplr(a: Arguments, q: str, alpha: Tensor, beta: Tensor, gk: Tensor) -> Result:
    inputs = _heads_first(_scaled(a, q), a["k"], a["v"], alpha, beta, gk)
    o, h = dplr_recurrence(*inputs, a["initial_state"], True)
    return Result([o.transpose(1, 2)], [h])


def dplr(a: Arguments) -> Result:
    return _dplr(a, "q", a["a"], a["b"], a["gk"])


def rwkv7(a: Arguments) -> Result:
    return _dplr(a, "r", a["a"], a["b"], a["w"])


def fused_mul_rwkv7(a: Arguments) -> Result:
    return _dplr(a, "r", -a["kk"], a["kk"] * a["a"], a["w"])


def iplr(a: Arguments) -> Result:
    inputs = _heads_first(_scaled(a), a["k"], a["v"], a["a"], a["b"])
    o, h = iplr_recurrence(*inputs, a["initial_state"], True)
    return Result([o.transpose(1, 2)], [h])
