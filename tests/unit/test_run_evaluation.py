"""The evaluation of a run fits its model."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from flame_accel.config import UserError
from flame_accel.run_evaluation import check_learned_positions_suffice


def test_rows_beyond_learned_positions_are_refused_before_the_run():
    sizes = {"vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        learned = GPT2LMHeadModel(GPT2Config(n_embd=8, n_positions=64, **sizes))
        rotary = LlamaForCausalLM(
            LlamaConfig(hidden_size=8, intermediate_size=8, max_position_embeddings=64, **sizes)
        )
    check_learned_positions_suffice(learned, 64)
    check_learned_positions_suffice(rotary, 512)
    with pytest.raises(UserError, match="has 65 tokens, and the model has learned positions for 6"):
        check_learned_positions_suffice(learned, 65)
