"""Which PyTorch implementation replaces which operator of fla, by which formula.

The tables are data: nothing of torch or fla is imported for them. `install` reads them.

Each is: our module, below `flame_accel.kernels.` -> fla's module, below `fla.` -> names in it. Our
function has the same name, or the one after `=`. Above each module of ours stands what its
operators compute, with the arXiv number of the paper that says it.
"""

FAMILIES: dict[str, dict[str, str]] = {
    # S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t; g per channel, head or none
    # (2312.06635, 2307.08621, 2405.21060)
    "recurrence.gla": {
        "ops.gla.chunk": "chunk_gla",
        "ops.gla.fused_chunk": "fused_chunk_gla=chunk_gla",
        "ops.gla.fused_recurrent": "fused_recurrent_gla",
        "ops.simple_gla.chunk": "chunk_simple_gla",
        "ops.simple_gla.fused_chunk": "fused_chunk_simple_gla",
        "ops.simple_gla.fused_recurrent": "fused_recurrent_simple_gla",
        "ops.simple_gla.parallel": "parallel_simple_gla",
        "ops.utils.cumsum": "chunk_global_cumsum chunk_global_cumsum_scalar=chunk_global_cumsum "
        "chunk_global_cumsum_vector=chunk_global_cumsum",
    },
    # h_t = exp(g_t) h_{t-1} + x_t, elementwise (2311.04823)
    "recurrence.hgrn": {
        "ops.hgrn.chunk": "chunk_hgrn=fused_recurrent_hgrn",
        "ops.hgrn.fused_recurrent": "fused_recurrent_hgrn",
    },
    # linear attention to slots with decays of the values, softmax, and from the slots with decays
    # of the keys; slots exp(s_t) over their running sum (2409.07146, 2110.02488)
    "recurrence.gsa": {
        "ops.gsa.chunk": "chunk_gsa=fused_recurrent_gsa",
        "ops.gsa.fused_recurrent": "fused_recurrent_gsa",
        "ops.gsa.gate": "fused_additive_gate",
    },
    # o_t = scale (S_{t-1} + diag(u) k_t v_t^T)^T r_t, S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T
    # (2404.05892)
    "recurrence.rwkv6": {
        "ops.rwkv6.chunk": "chunk_rwkv6=fused_recurrent_rwkv6",
        "ops.rwkv6.fused_recurrent": "fused_recurrent_rwkv6",
    },
    # linear attention with scores 1 + a + a^2 / 2 or a^2, a = scale q . k (2402.18668, 2402.10644)
    "recurrence.based": {
        "ops.based.parallel": "parallel_based",
        "ops.based.fused_chunk": "fused_chunk_based=parallel_based",
        "ops.rebased.parallel": "parallel_rebased",
    },
    # S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T, g per head or none;
    # several such steps per token; erase keys of their own (2406.06484, 2412.06464, 2502.10297,
    # 2506.02475)
    "recurrence.delta_rule": {
        "ops.delta_rule.chunk": "chunk_delta_rule",
        "ops.delta_rule.fused_recurrent": "fused_recurrent_delta_rule=chunk_delta_rule",
        "ops.gated_delta_rule.chunk": "chunk_gated_delta_rule",
        "ops.gated_delta_rule.fused_recurrent": "fused_recurrent_gated_delta_rule="
        "chunk_gated_delta_rule",
        "ops.gated_delta_rule.gate": "fused_gdn_gate",
        "ops.gated_delta_product.chunk": "chunk_gated_delta_product",
        "ops.comba.chunk": "chunk_comba",
        "ops.comba.fused_recurrent": "fused_recurrent_comba=chunk_comba",
    },
    # S_t = S_{t-1} diag(exp(g_t)) + beta_t (k_t - S_{t-1} diag(exp(g_t)) v_t) v_t^T
    "recurrence.oja": {
        "ops.gated_oja_rule.chunk": "chunk_gated_oja_rule",
        "ops.gated_oja_rule.fused_recurrent": "fused_recurrent_gated_oja_rule=chunk_gated_oja_rule",
    },
    # a gradient step of a linear map for each mini-batch of tokens (2407.04620)
    "recurrence.ttt": {
        "ops.ttt.chunk": "chunk_ttt_linear",
        "ops.ttt.fused_chunk": "fused_chunk_ttt_linear=chunk_ttt_linear",
    },
    # sum_{s<t} exp(k_s - (t-1-s) exp(w)) v_s + exp(u + k_t) v_t over the same without v
    # (2305.13048)
    "recurrence.rwkv4": {"ops.rwkv4.fused_recurrent": "fused_recurrent_rwkv4"},
    # (R_t + diag(lambda)) x_t = q_t by conjugate gradients, o_t = S_t^T x_t; R and S sums with
    # decay of k k^T and k v^T (2506.05233)
    "recurrence.mesa": {
        "ops.mesa_net.chunk": "chunk_mesa_net",
        "ops.mesa_net.decoding_one_step": "mesa_net_decoding_one_step",
    },
    # M_t = mu_t M_{t-1} - eta_t k_t (v_t - S_{t-1}^T p_t)^T, S_t = alpha_t S_{t-1} - beta_t M_t
    # (2605.05838)
    "recurrence.momentum": {
        "ops.momentum_delta_rule.chunk": "chunk_momentum_delta_rule",
        "ops.momentum_delta_rule.fused_recurrent": "fused_recurrent_momentum_delta_rule="
        "chunk_momentum_delta_rule",
    },
    # the delta rule with keys scaled by a running sum of their squares, g per head or channel
    # (2604.21100)
    "recurrence.preconditioned": {
        "ops.precond_gated_delta_rule.chunk": "chunk_precond_gated_delta_rule",
        "ops.precond_gated_delta_rule.fused_recurrent": "fused_recurrent_precond_gated_delta_rule"
        "=chunk_precond_gated_delta_rule",
        "ops.precond_kda.chunk": "chunk_precond_kda",
        "ops.precond_kda.fused_recurrent": "fused_recurrent_precond_kda=chunk_precond_kda",
    },
    # softmax over a memory whose slots turn with a learned clock (2609.36259)
    "recurrence.cyfa": {
        "ops.cyfa.chunk": "chunk_cyfa",
        "ops.cyfa.fused_recurrent": "fused_recurrent_cyfa=chunk_cyfa",
    },
    # linear attention with decay and one weight per power of two of distance (2506.04761)
    "recurrence.log_linear": {"ops.log_linear_attn.chunk": "chunk_log_linear_attn"},
    # softmax attention to values u_t = v_t - beta_t softmax(q_t k_{<t}) u_{<t} (2505.19488)
    "attention.deltaformer": {"ops.deltaformer.parallel": "deltaformer_attn"},
    # the delta rule with D_t = diag(exp(g_t)) per channel; gates per channel for what is erased and
    # written (2510.26692)
    "recurrence.kda": {
        "ops.kda.chunk": "chunk_kda",
        "ops.kda.fused_recurrent": "fused_recurrent_kda=chunk_kda",
        "ops.kda.gate": "fused_kda_gate",
        "ops.gdn2.chunk": "chunk_gdn2",
        "ops.gdn2.fused_recurrent": "fused_recurrent_gdn2=chunk_gdn2",
    },
    # S_t = diag(exp(g_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T (2503.14456)
    "recurrence.dplr": {
        "ops.generalized_delta_rule.dplr.chunk": "chunk_dplr_delta_rule",
        "ops.generalized_delta_rule.dplr.fused_recurrent": "fused_recurrent_dplr_delta_rule",
        "ops.generalized_delta_rule.iplr.chunk": "chunk_iplr_delta_rule",
        "ops.generalized_delta_rule.iplr.fused_recurrent": "fused_recurrent_iplr_delta_rule="
        "chunk_iplr_delta_rule",
    },
    # the same with a = -kk, b = kk a; mixes x + delta * x_i of token-shifted inputs; the bonus
    # (r . k r_k) v; a feed-forward layer relu(.)^2 of such a mix (2503.14456)
    "recurrence.rwkv7": {
        "ops.rwkv7.chunk": "chunk_rwkv7",
        "ops.rwkv7.fused_recurrent": "fused_recurrent_rwkv7=chunk_rwkv7 fused_mul_recurrent_rwkv7",
        "ops.rwkv7.fused_addcmul": "fused_addcmul_rwkv7",
        "ops.rwkv7.fused_k_update": "fused_k_rwkv7",
        "ops.rwkv7.channel_mixing": "channel_mixing_rwkv7",
        "ops.rwkv7.gate_output_correction": "gate_output_correction",
    },
    # sums, means and inverses of chunks; rows with and without padding
    "modules.chunks": {
        "ops.utils.cumsum": "chunk_local_cumsum chunk_local_cumsum_scalar=chunk_local_cumsum "
        "chunk_local_cumsum_vector=chunk_local_cumsum",
        "ops.utils.pooling": "mean_pooling",
        "ops.utils.solve_tril": "solve_tril",
        "ops.utils.pack": "pack_sequence unpack_sequence",
        "ops.utils.csr": "prepare_block_csr",
    },
    # matrix products and softmax, of which kernels are made
    "modules.dense": {
        "ops.utils.matmul": "matmul addmm",
        "ops.utils.softmax": "softmax_fwd softmax_bwd",
        "ops.utils.logsumexp": "logsumexp_fwd",
        "ops.utils.sinkhorn.ops": "sinkhorn",
    },
    # x_{t-1} - x_t (2305.13048)
    "modules.token_shift": {"modules.token_shift": "token_shift"},
    # softmax over earlier residual streams (2603.15031)
    "modules.attention_residuals": {"ops.attnres.fused": "fused_attnres"},
    # (x - mean) / sqrt(var + eps) weight + bias; no mean for RMS; times act(gate) where gated
    "modules.norm": {
        "modules.norm.layernorm": "layer_norm=group_norm rms_norm group_norm layer_norm_linear",
        "modules.norm.fused_norm_gate": "layer_norm_gated rms_norm_gated "
        "layer_norm_swish_gate_linear rms_norm_swish_gate_linear",
        "modules.norm.layernorm_gated": "layernorm_fn rmsnorm_fn",
        "modules.norm.l2norm": "l2norm",
    },
    # round(norm(x)) @ round(weight)^T, rounding without a gradient of its own (2402.17764)
    "modules.bitlinear": {"modules.fused_bitlinear": "layer_norm_linear_quant"},
    # y_t = act(sum_w weight_w x_{t-W+1+w}) + residual_t, per channel
    "modules.convolution": {"modules.causal_conv1d.ops": "causal_conv1d causal_conv1d_update"},
    # elementwise functions; gated linear units act(x) y, with the linear map that follows
    "modules.activation": {
        "modules.activations.ops": "sigmoid logsigmoid swish sqrelu fast_gelu_impl=gelu "
        "bias_gelu_impl=bias_gelu swiglu swiglu_linear sigmoidglu "
        "sigmoidglu_linear powglu powglu_linear",
        "layers.rodimus": "autocast_to_fp16=identity",
    },
    # rotation of channel pairs by position (2104.09864)
    "modules.rotary": {"modules.rotary.ops": "rotary_embedding"},
    # -log softmax(logits)[target] with smoothing, z-loss, soft cap
    "modules.loss": {
        "modules.fused_cross_entropy.ops": "cross_entropy_loss "
        "FusedCrossEntropyLoss.forward=forward_cross_entropy",
        "modules.fused_linear_cross_entropy.ops": "fused_linear_cross_entropy_loss",
    },
    # KL(teacher || student) of linear maps; -advantage + beta KL (2402.03300)
    "modules.kl_div": {
        "modules.fused_kl_div.ops": "fused_kl_div_fwd fused_kl_div_bwd",
        "modules.grpo.ops": "fused_grpo_loss",
    },
    # softmax_j(scale q_i . k_j + c_i - c_j) v_j, c the running sum of log gates (2503.02130)
    "attention.forgetting_attention": {
        "ops.attn.parallel": "parallel_attn",
        "ops.attn.decoding": "attn_decoding_one_step",
        "ops.forgetting_attn.parallel": "parallel_forgetting_attn=parallel_attn",
    },
    # softmax_j(scale sum_n q_in k_jn exp(P_in - P_jn)) v_j, P the running sums of log decays
    "attention.wall_attention": {
        "ops.wall_attn.parallel": "parallel_wall_attn",
        "ops.wall_attn.decode": "parallel_wall_attn_decode",
        "layers.wall_attn": "WallAttention._decode_incremental=decode_incremental "
        "WallAttention._decode_rebuild=decode_rebuild",
    },
    # p_ij (1 + sum_l p_il t_il - t_ij) v_j, p softmax of q_i . k_j, t_ij = r_i . k_j (2605.29157)
    "attention.parallax": {
        "ops.parallax.parallel": "parallel_parallax",
        "ops.parallax.decode": "parallax_decode parallax_decode_one_step=parallax_decode",
    },
    # sigmoid(z_ij) prod_l (1 - sigmoid(z_il)) v_j over the keys l after j (2410.17980)
    "attention.stickbreaking_attention": {
        "ops.stickbreaking_attn.parallel": "parallel_stickbreaking_attn",
        "layers.stickbreaking_attn": "StickBreakingAttention.forward="
        "forward_stickbreaking_or_raise_if_cached",
    },
    # softmax_j(scale q_i^T H_i ... H_{j+1} k_j) v_j, H_t = I - beta_t w_t w_t^T (2505.16381)
    "attention.path_attention": {"ops.path_attn.parallel": "parallel_path_attn"},
    # attention to block means, to the blocks that match best, and to a window (2502.11089)
    "attention.nsa": {"ops.nsa.parallel": "parallel_nsa"},
    # softmax attention under a mask (2511.05313)
    "attention.cat": {
        "models.cat.modeling_cat": "create_block_mask_compiled=create_block_mask "
        "flex_attention_compiled=flex_attention",
    },
}
"""Operators that have no kernel without a Triton device; replaced there."""

_FLASH = "flash_attn_func flash_attn_varlen_func"
ATTENTION_REPLACEMENTS: dict[str, dict[str, str]] = {
    # softmax_j(scale q_i . k_j) v_j over earlier tokens, a window of them, or all (1706.03762)
    "attention.flash_attention": {
        "layers.attn": _FLASH,
        "layers.bitattn": _FLASH,
        "layers.mla": _FLASH,
        "layers.moba": _FLASH,
        "layers.rodimus": _FLASH,
        "ops.deltaformer.parallel": _FLASH,
        "ops.nsa.parallel": _FLASH,
    },
    # softmax attention to one's own chunk and those that match best (2502.13189)
    "attention.moba": {"ops.moba.parallel": "parallel_moba"},
}
"""What fla imports from flash-attn; replaced on every device if that package is missing."""

FIXES: dict[str, dict[str, str]] = {
    # h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t, per channel (2312.00752)
    "recurrence.mamba": {
        "layers.mamba": "Mamba.slow_forward=slow_forward "
        "Mamba.cuda_kernels_forward=forward_mamba_ssm_unless_packed",
    },
    # the same with one decay per head, on simple GLA (2405.21060)
    "recurrence.mamba2": {"layers.mamba2": "Mamba2.forward=forward_mamba2_with_padding_masked"},
    # the same by the trapezoid rule, B and C turned, on simple GLA (Mamba-3, ICLR 2026)
    "recurrence.mamba3": {"layers.mamba3": "Mamba3.forward=forward_mamba3"},
    # tokens assigned to the memories they choose, in their order (2502.13685)
    "recurrence.mom": {
        "layers.mom": "transform MomAttention.forward=forward_mom",
    },
    # fla's layer, for packed documents, under autocast, and without CUDA
    "recurrence.log_linear": {
        "layers.log_linear_mamba2": "LogLinearMamba2.forward="
        "forward_log_linear_mamba2_per_document_or_row "
        "chunk_log_linear_attn=run_triton_log_linear_attn_casting_level_scales",
    },
    # padding takes no part in the corrections
    "attention.deltaformer": {
        "layers.deltaformer": "deltaformer_attn=run_triton_deltaformer_attn_without_padding",
    },
    # slots exp(s_t) over their running sum, which is part of the state (2110.02488)
    "recurrence.gsa": {
        "ops.abc.chunk": "chunk_abc",
        "layers.abc": "ABCAttention.__call__=call_abc_attention_per_document_or_unpadded_row",
    },
    # a model's layers one after the other, with all options handed on
    "modules.model_forwards": {
        "models.linear_attn.modeling_linear_attn": "LinearAttentionModel.forward=forward_model "
        "LinearAttentionForCausalLM.forward=forward_causal_lm",
        "models.cat.modeling_cat": "CATModel.forward=forward_cat_without_padding",
        "models.yoco.modeling_yoco": "YOCOModel.forward="
        "forward_yoco_unmasking_trailing_padding_refusing_cache",
    },
    # tokens gathered by a mask that is theirs
    "modules.unpadding": {
        "layers.utils": "get_unpad_indices_and_cu=check_rows_nonempty_and_get_unpad_indices_and_cu "
        "unpad_input=check_mask_fits_states_and_rows_nonempty_then_unpad",
        "layers.cyfa": "CyclicFlowAttention.forward=forward_cyclic_flow_if_every_row_has_token",
    },
    # layers in the one of their equivalent modes that has all of their features
    "modules.equivalent_modes": {
        "layers.gla": "GatedLinearAttention.forward=forward_gla_in_chunk_mode",
        "layers.hgrn2": "HGRN2Attention.forward=forward_hgrn2_in_chunk_mode",
        "layers.multiscale_retention": "MultiScaleRetention.forward="
        "forward_retention_replacing_parallel_mode_permanently",
    },
    # fla's own layers, called as they need to be for generation
    "modules.generation_fixes": {
        "layers.attn": "Attention.forward=forward_attention",
        "layers.bitattn": "BitAttention.forward=forward_bit_attention",
        "layers.forgetting_attn": "ForgettingAttention.forward="
        "forward_forgetting_masked_after_clearing_window",
        "layers.mla": "MultiheadLatentAttention.forward=forward_mla_with_window_in_cache",
        "layers.moba": "MoBA.forward=forward_moba_after_clearing_window_size",
        "layers.nsa": "NativeSparseAttention.forward=forward_nsa",
        "layers.parallax": "Parallax.forward=forward_parallax",
        "layers.path_attn": "PaTHAttention.forward=forward_path_with_mask_uncompiled",
        "layers.rodimus": "SlidingWindowSharedKeyAttention.forward=forward_rodimus_attention",
        "layers.wall_attn": "WallAttention.forward=forward_wall_rows_without_padding_if_cached",
    },
}
"""Functions that are wrong in fla 0.6.0 on every device, and are replaced on every device."""


_PASS = "one pass of a kernel, which has no meaning of its own; call"
NOT_SERVED: dict[str, str] = {
    "modules.causal_conv1d.ops.CausalConv1dFunction": f"{_PASS} causal_conv1d",
    "modules.causal_conv1d.ops.causal_conv1d_bwd": f"{_PASS} causal_conv1d",
    "modules.causal_conv1d.ops.causal_conv1d_fwd": f"{_PASS} causal_conv1d",
    "modules.causal_conv1d.ops.causal_conv1d_update_states": "causal_conv1d returns final states "
    "itself",
    "ops.atk.chunk_atk_bwd.chunk_atk_bwd": f"{_PASS} chunk_precond_kda",
    "ops.atk.chunk_atk_fwd.chunk_atk_fwd": f"{_PASS} chunk_precond_kda",
    "ops.atk.chunk_atk_fwd.recompute_atk_fwd": f"{_PASS} chunk_precond_kda",
    "ops.utils.softplus.softplus": "a function for use within Triton kernels",
}
"""Public names of fla that need a Triton device, and why they have no replacement."""


def _map_fla_paths_to_ours(fla_names_by_our_module: dict[str, dict[str, str]]) -> dict[str, str]:
    rows = {}
    for our_module, replaced in fla_names_by_our_module.items():
        for module, names in replaced.items():
            for name in names.split():
                theirs, _, ours = name.partition("=")
                rows[f"{module}.{theirs}"] = f"{our_module}.{ours or theirs}"
    return rows


REPLACEMENTS = _map_fla_paths_to_ours(FAMILIES)
"""Every operator, below `fla.` -> the function that replaces it, below `flame_accel.kernels.`."""

REPLACEMENTS_WITHOUT_FLASH_ATTN = _map_fla_paths_to_ours(ATTENTION_REPLACEMENTS)
"""As `REPLACEMENTS`, for the names that fla could not import from flash-attn."""

FIXES_EVERYWHERE = _map_fla_paths_to_ours(FIXES)
"""As `REPLACEMENTS`, for `FIXES`."""
