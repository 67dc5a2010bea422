"""Floating point operations of training, per token, and what a device can do in a second.

Nothing here measures. The count is of the model's mathematics, whatever a kernel does beyond it
(recomputation, the matrices inside a chunk), so that MFU compares kernels
(https://arxiv.org/abs/2204.02311, appendix B). A multiply-add counts as two.

Weights: one of a linear or convolution layer takes a multiply-add per token forward and two
backward (the gradients of its input and of itself), so 6 operations. `lm_head` counts; the
embedding is a look-up and does not; norms, gates and activations are left out, as in that source.

Mixers: forward, per token and head; the backward pass takes twice as much.

* Softmax attention over n keys: 2 d n for the scores and 2 d n for the values. Causal: n is
  (T + 1) / 2 on average, less with a window.
* A state of d_k x d_v with a decay (GLA, RetNet, HGRN2, Mamba2): S <- a S + k v^T takes 2 d_k d_v,
  reading S^T q as much; the decay itself is left out. https://arxiv.org/abs/2312.06635,
  https://arxiv.org/abs/2405.21060
* The delta rule (DeltaNet, Gated DeltaNet, KDA): S <- a S + k (v - a S^T k)^T reads the state
  once more, 6 d_k d_v. https://arxiv.org/abs/2406.06484, https://arxiv.org/abs/2412.06464.
  Gated DeltaProduct makes n such updates before it reads: (4 n + 2) d_k d_v.
  https://arxiv.org/abs/2502.10297
* RWKV-7 erases along another vector than it writes, S <- S (diag(w) + a b^T) + v k^T: 8 d_k d_v.
  https://arxiv.org/abs/2503.14456
* Gated slot attention has two states with a decay, d_k x m and m x d_v.
  https://arxiv.org/abs/2409.07146
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.norms import base_model_type

FORWARD_AND_BACKWARD = 3
"""Forward and backward pass, in forward passes."""

DECAY_FLOPS = 4
DELTA_RULE_FLOPS = 6
GENERALIZED_DELTA_RULE_FLOPS = 8
"""Operations per element of a recurrent state and token, forward."""


def train_flops_per_token(model: PreTrainedConfig | PreTrainedModel, seq_len: int) -> float | None:
    """Counts the operations of training on one token: forward and backward, no recomputation.

    Args:
        model: a model, or a config, of which a model without memory is then built.
        seq_len: tokens in a row, or in a document where attention does not cross documents.

    Returns:
        Operations per token; None for an architecture whose formula this module does not have.
    """
    config = model if isinstance(model, PreTrainedConfig) else model.config
    mixers = _forward_mixer_flops_per_token(config, seq_len)
    if mixers is None:
        return None
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = instantiate_on_default_device(model)
    return FORWARD_AND_BACKWARD * (2 * _count_linear_and_convolution_weights(model) + mixers)


def _count_linear_and_convolution_weights(model: PreTrainedModel) -> int:
    """Counts the weights of linear and convolution layers by their sizes, sharded or not."""
    weights = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weights += module.in_features * module.out_features
        elif isinstance(module, Conv1D):
            weights += module.nx * module.nf
        elif isinstance(module, nn.Conv1d):
            inputs = module.in_channels // module.groups
            weights += module.out_channels * inputs * module.kernel_size[0]
    return weights


def _forward_mixer_flops_per_token(config: PreTrainedConfig, seq_len: int) -> float | None:
    """Sums the forward operations of all token mixers, per token."""
    formula = MIXER_FLOPS.get(base_model_type(config))
    # attention over the residuals of earlier layers is no mixer of tokens, and has no formula here
    if formula is None or getattr(config, "attnres_block_size", None) is not None:
        return None
    # a hybrid's layers with softmax attention, in one group or several
    groups = getattr(config, "attn", None) or []
    attention = {
        layer: _softmax_attention_flops_per_token(config.hidden_size, seq_len, group["window_size"])
        for group in ([groups] if isinstance(groups, dict) else groups)
        for layer in group["layers"]
    }
    layers = range(config.num_hidden_layers)
    return sum(attention.get(layer) or formula(config, layer, seq_len) for layer in layers)


def _softmax_attention_flops_per_token(
    width_of_all_heads: int, seq_len: int, window: int | None
) -> float:
    """Operations of causal softmax attention per token."""
    reach = min(window or seq_len, seq_len)
    keys = reach * (reach + 1) / 2 + (seq_len - reach) * reach
    return 4 * width_of_all_heads * keys / seq_len


def _state_elements_from_expand_k(config: PreTrainedConfig) -> float:
    """Elements of all heads' states, where all keys are `expand_k` times as wide as the model."""
    return config.hidden_size**2 * config.expand_k * config.expand_v / config.num_heads


def _state_elements_from_head_dim(config: PreTrainedConfig) -> float:
    """Elements of all heads' states, where a key is `head_dim` wide; values may have more heads."""
    heads = getattr(config, "num_v_heads", None) or config.num_heads
    return heads * config.head_dim**2 * config.expand_v


def _transformers_mixer_flops_per_token(
    config: PreTrainedConfig, layer_index: int, seq_len: int
) -> float:
    """Of a layer of transformers' own models: softmax attention or the gated delta rule."""
    kinds = getattr(config, "layer_types", None)
    kind = "full_attention" if kinds is None else kinds[layer_index]
    if kind == "linear_attention":
        heads = config.linear_num_value_heads
        state = heads * config.linear_key_head_dim * config.linear_value_head_dim
        return DELTA_RULE_FLOPS * state
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # a config without kinds of layers has one kind, with a window if it has the field
    windowed = kind == "sliding_attention" or kinds is None
    window = getattr(config, "sliding_window", None) if windowed else None
    return _softmax_attention_flops_per_token(heads * head_dim, seq_len, window)


MIXER_FLOPS: dict[str, Callable[[Any, int, int], float]] = {
    "delta_net": lambda config, layer, seq_len: (
        DELTA_RULE_FLOPS * _state_elements_from_expand_k(config)
    ),
    "gated_deltanet": lambda config, layer, seq_len: (
        DELTA_RULE_FLOPS * _state_elements_from_head_dim(config)
    ),
    "gated_deltaproduct": lambda config, layer, seq_len: (
        (4 * config.num_householder + 2) * _state_elements_from_head_dim(config)
    ),
    "gla": lambda config, layer, seq_len: DECAY_FLOPS * _state_elements_from_expand_k(config),
    "gpt2": _transformers_mixer_flops_per_token,
    "gsa": lambda config, layer, seq_len: (
        DECAY_FLOPS
        * (config.num_slots or config.hidden_size * config.expand_k / config.num_heads)
        * config.hidden_size
        * (config.expand_k + config.expand_v)
    ),
    "hgrn2": lambda config, layer, seq_len: DECAY_FLOPS * config.hidden_size * config.expand_ratio,
    "kda": lambda config, layer, seq_len: DELTA_RULE_FLOPS * _state_elements_from_head_dim(config),
    "llama": _transformers_mixer_flops_per_token,
    "mamba2": lambda config, layer, seq_len: (
        DECAY_FLOPS * config.expand * config.hidden_size * config.state_size
    ),
    "mistral": _transformers_mixer_flops_per_token,
    "olmo2": _transformers_mixer_flops_per_token,
    "olmo3": _transformers_mixer_flops_per_token,
    "olmo_hybrid": _transformers_mixer_flops_per_token,
    "qwen2": _transformers_mixer_flops_per_token,
    "qwen3": _transformers_mixer_flops_per_token,
    "qwen3_5_text": _transformers_mixer_flops_per_token,
    "retnet": lambda config, layer, seq_len: DECAY_FLOPS * _state_elements_from_expand_k(config),
    "rwkv7": lambda config, layer, seq_len: (
        GENERALIZED_DELTA_RULE_FLOPS * config.head_dim * config.value_dim[layer]
    ),
    "smollm3": _transformers_mixer_flops_per_token,
    "transformer": lambda config, layer, seq_len: _softmax_attention_flops_per_token(
        config.hidden_size, seq_len, config.window_size
    ),
}
"""Forward operations per token of an architecture's own mixer, by config, layer and row length."""

PEAK_FLOPS: dict[str, float] = {
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H20": 148e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA GH200 480GB": 989.5e12,
    "NVIDIA B200": 2250e12,
    "AMD Instinct MI300X": 1307.4e12,
    "AMD Instinct MI325X": 1307.4e12,
}
"""Dense bfloat16 operations per second, by the name that `torch.cuda.get_device_name` gives.

From the makers' data sheets (GeForce and RTX A6000: the GA102 and Ada whitepapers, accumulating in
float32), many of which print twice as much, for 2:4 sparsity. float16 has the same peak on all of
them. A part of a GPU (MIG) has another name, so it is not listed.
"""


def device_peak_flops(device_name: str, dtype: torch.dtype = torch.bfloat16) -> float | None:
    """Looks up the dense peak of a device in operations per second; None where it is not listed.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        dtype: Dtype of the matrix products.
    """
    return PEAK_FLOPS.get(device_name) if dtype in (torch.bfloat16, torch.float16) else None
