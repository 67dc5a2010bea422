"""Which causal language models transformers itself has, and a tiny configuration of each.

The list comes from transformers; types that fla registers under the same name are fla's
(`catalogue`). Checks live in `diagnosis/conformance`; nothing here builds a model.
"""

import inspect
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flame_accel.models.catalogue import (
    TINY_FIELDS,
    VOCABULARY_SIZE,
    fla_config_classes,
    tiny_config,
)

MAX_POSITIONS = 256

TINY_TRANSFORMERS_FIELDS: dict[str, Any] = {
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rotary_dim": 16,
    "intermediate_size": 128,
    "n_inner": 128,
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": MAX_POSITIONS,
    "n_positions": MAX_POSITIONS,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_num_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_head_dim": 32,
    "sliding_window": 16,
    "state_size": 16,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "n_mamba_heads": 4,
    "mamba_d_head": 32,
    "mamba_head_dim": 32,
    "mamba_headdim": 32,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "ssm_state_size": 16,
    "vocab_size": VOCABULARY_SIZE,
    "initializer_range": TINY_FIELDS["initializer_range"],
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Values of every tiny configuration whose class has the field."""

TINY_TRANSFORMERS_FIELDS_BY_TYPE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4},
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY_SIZE},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp"],
        "n_groups": 2,
        "num_hidden_layers": 3,
    },
    "qwen3_5_text": {"linear_num_key_heads": 1},
    # more value heads than key heads, as in its published models
    "qwen3_next": {"linear_num_key_heads": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
}
"""Values of single model types: they replace or complete those above."""


WITHOUT_TINY_CONFIG = frozenset(
    {
        "cohere_compass_text",
        "cwm",
        "longcat_flash",
        "mimo_v2_flash",
        "modernbert-decoder",
        "qwen4_exp_text",
        "xlm",
        "xlstm",
        "zamba",
        "zamba2",
        "zaya",
    }
)
"""Types whose constraints none of the values above meet. They are tried with their own sizes when a
run asks for packed documents."""

NOT_CAUSAL = frozenset({"cpmant", "xlnet"})
"""Types registered as causal language models whose tokens see later ones."""


def transformers_only_decoder_config_classes() -> dict[str, type[PreTrainedConfig]]:
    """The configuration class of every decoder-only language model of transformers, by model type.

    Left out are the types that fla registers, encoders, decoders of encoder-decoder models, models
    of more than text, `WITHOUT_TINY_CONFIG` and `NOT_CAUSAL`.
    """
    left_out = {*fla_config_classes(), *WITHOUT_TINY_CONFIG, *NOT_CAUSAL}
    classes = {
        model_type: CONFIG_MAPPING[model_type]
        for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        if model_type in CONFIG_MAPPING and model_type not in left_out
    }
    return {
        model_type: config_class
        for model_type, config_class in classes.items()
        if config_class.model_type == model_type
        and config_class in MODEL_FOR_CAUSAL_LM_MAPPING
        and not config_class.sub_configs
        and not hasattr(config_class, "is_decoder")
        and not config_class.is_encoder_decoder
    }


def tiny_transformers_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A configuration with which a model trains in milliseconds, with one layer of each kind.

    Args:
        model_type: One of `transformers_only_decoder_config_classes`.
        changes: Fields with other values.
    """
    config_class = CONFIG_MAPPING[model_type]
    known = inspect.signature(config_class).parameters
    fields = {name: v for name, v in TINY_TRANSFORMERS_FIELDS.items() if name in known}
    fields |= TINY_TRANSFORMERS_FIELDS_BY_TYPE.get(model_type, {})
    if "layer_types" in known:
        kinds = list(dict.fromkeys(config_class().layer_types or ()))
        if len(kinds) > 1:
            fields |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return config_class(**{**fields, **changes})


def tiny_config_of_any_model(model_type: str) -> PreTrainedConfig:
    """The tiny configuration of a model type of fla or of transformers."""
    of_fla = model_type in fla_config_classes()
    return tiny_config(model_type) if of_fla else tiny_transformers_config(model_type)
