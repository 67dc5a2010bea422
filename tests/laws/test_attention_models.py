"""Models of softmax attention and its variants: they learn, and generate what one pass computes."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("torch_kernels")


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"window_size": 8, "num_kv_heads": 1, "qk_norm": True},
    "mla": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "qk_head_dim": 16,
        "v_head_dim": 8,
    },
    "forgetting_transformer": {"num_kv_heads": 1, "use_output_gate": True},
    "moba": {"moba_chunk_size": 16, "moba_topk": 4},
    "nsa": {
        "num_heads": 16,
        "num_kv_heads": 1,
        "head_dim": 8,
        "block_size": 8,
        "block_counts": 4,
        "window_size": 6,
    },
    "path_attn": {"use_forget_gate": True, "num_kv_heads": 1},
    "parallax": {"window_size": 8, "num_kv_heads": 1},
    "stickbreaking_attn": {},
    "wall_transformer": {"window_size": 8, "use_scalar_gate": True, "num_kv_heads": 1},
    "cat": {},
    "gla": {"attn": {"layers": [1], "num_heads": 2, "window_size": 8}},
}


@pytest.mark.parametrize("model_type", MODELS)
def test_models_learn_and_generate_what_one_pass_computes(model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE | MODELS[model_type], eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, losses = torch.randint(64, (2, 40)), []
    for _ in range(3):
        loss = model(x, labels=x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0] - 0.1
    model.eval()
    prompt = x[:, :10]
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=16,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        whole = model(out.sequences, use_cache=False).logits
    steps = torch.stack(out.logits, 1)
    assert (steps - whole[:, 9:-1]).abs().max() < 1e-5
