"""Which causal language models fla registers, and a tiny configuration of each.

The list comes from fla. Checks live in `diagnosis/conformance`; nothing here builds a model.
"""

import inspect
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

VOCABULARY_SIZE = 256

TINY_FIELDS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "vocab_size": VOCABULARY_SIZE,
    "initializer_range": 0.1,
    "head_dim": 32,
    "state_size": 16,
    "num_slots": 16,
    "chunk_size": 16,
    "expand_ratio": 32,
    "gate_low_rank_dim": 16,
    "decay_low_rank_dim": 16,
    "a_low_rank_dim": 16,
    "v_low_rank_dim": 16,
    "proj_low_rank_dim": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Values of every tiny configuration whose class has the field."""

TINY_FIELDS_BY_TYPE: dict[str, dict[str, Any]] = {
    "cat": {"max_chunk_size": 8, "pad_to_multiple_of": 16},
    "hgrn": {"expand_ratio": 1},
    # its kernels want whole blocks of 64 states
    "log_linear_mamba2": {"chunk_size": 64, "state_size": 64},
    "mla": {
        "q_lora_rank": 16,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "qk_head_dim": 32,
        "v_head_dim": 32,
    },
    # all blocks: by design, fla's MoBA generates with dense attention (2502.13189, section 3.3)
    "moba": {"moba_chunk_size": 16, "moba_topk": 8},
    # its kernels want sixteen query heads for each head of keys
    "nsa": {
        "num_heads": 16,
        "num_kv_heads": 1,
        "head_dim": 16,
        "block_size": 16,
        "block_counts": 2,
        "window_size": 16,
    },
    "raven": {"topk": 4},
    # its default, False, asks the second layer for a residual that it does not hand on
    "rodimus": {
        "ska_attn": {"num_heads": 2, "window_size": 16},
        "block_residual_in_fp32": True,
    },
    "samba": {"attn": {"layers": [1], "num_heads": 2, "window_size": 16}},
    "yoco": {
        "num_self_decoder_layers": 1,
        "self_decoder_attn": {"num_heads": 2, "head_dim": 32},
        "cross_decoder_attn": {"num_heads": 2},
    },
}
"""Values of single model types: they replace or complete those of `TINY_FIELDS`."""


def fla_config_classes() -> dict[str, type[PreTrainedConfig]]:
    """The configuration class of every causal language model that fla registers, by model type."""
    import fla.models

    return {
        value.model_type: value
        for _, value in sorted(vars(fla.models).items())
        if inspect.isclass(value)
        and issubclass(value, PreTrainedConfig)
        and value in MODEL_FOR_CAUSAL_LM_MAPPING
    }


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A configuration with which a model trains in milliseconds: 64 channels, 2 layers, 2 heads.

    Args:
        model_type: one of `fla_config_classes`.
        changes: fields with other values.
    """
    config_class = fla_config_classes()[model_type]
    known = {
        name
        for base in config_class.__mro__
        if issubclass(base, PreTrainedConfig) and base is not PreTrainedConfig
        for name in inspect.signature(base).parameters
    }
    small = {name: value for name, value in TINY_FIELDS.items() if name in known}
    return config_class(**{**small, **TINY_FIELDS_BY_TYPE.get(model_type, {}), **changes})
