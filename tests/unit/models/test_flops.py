"""Laws of the count of operations: against torch's counter, the layers' sizes, hand values."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedConfig

from flame_accel.models.build import build_model
from flame_accel.models.flops import FORWARD_AND_BACKWARD, device_peak_flops, train_flops_per_token
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.registration import register_models

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 40}
T = 32
KEYS, VALUES = 6, 10

Count = dict[str, int]


@pytest.fixture(autouse=True)
def constructible(monkeypatch) -> None:
    """Lets fla's softmax layers be built without flash-attn, which their forward pass needs."""
    register_models()
    monkeypatch.setattr("fla.layers.attn.flash_attn_func", object())


def config_of(model_type: str, **fields) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **{**SIZES, **fields})


def counted(function) -> Count:
    with FlopCounterMode(display=False) as counter:
        function()
    ops = counter.get_flop_counts().get("Global", {})
    return {str(op): count for op, count in ops.items()}


def mixer_flops(config: PreTrainedConfig, seq_len: int = T) -> float:
    """What is left of the count without the weights; those do not depend on the row length."""
    with torch.device("meta"):
        model = instantiate_on_default_device(config)
    weights = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d)
    )
    total = train_flops_per_token(model, seq_len)
    assert total == train_flops_per_token(config, seq_len)
    return total / FORWARD_AND_BACKWARD - 2 * weights


# weights


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "olmo2", "qwen2", "qwen3"])
def test_a_transformer_takes_what_torch_counts(model_type):
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    if model_type == "gpt2":
        sizes = {"num_attention_heads": 4, "n_inner": 48}
    config = config_of(model_type, **sizes, attn_implementation="eager")
    model = build_model(config, vocabulary_size=40, bos_token_id=1, eos_token_id=2, seed=0)
    tokens = torch.randint(0, 40, (2, T))
    ops = counted(lambda: model(input_ids=tokens, labels=tokens).loss.backward())
    rotary: Count = {}
    if model_type != "gpt2":
        positions = torch.arange(T)[None]
        rotary = counted(lambda: model.model.rotary_emb(torch.empty(1, T, 64), positions))
    # torch computes the whole square of scores, of which (T + 1) / (2 T) are causal
    causal = (ops["aten.bmm"] - rotary.get("aten.bmm", 0)) * (T + 1) / (2 * T)
    weights = ops["aten.mm"] + ops.get("aten.addmm", 0)
    assert weights + causal == train_flops_per_token(model, T) * tokens.numel()


def test_hybrids_and_windows_of_transformers_count_each_kind_of_layer():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": KEYS,
        "linear_value_head_dim": VALUES,
    }
    kinds = {"layer_types": ["linear_attention", "full_attention"]}
    softmax = mixer_flops(config_of("qwen3", **heads, num_hidden_layers=1))
    hybrid = mixer_flops(config_of("qwen3_5_text", **heads, **linear, **kinds))
    assert hybrid == softmax + 6 * 4 * KEYS * VALUES
    window = mixer_flops(config_of("mistral", **heads, sliding_window=5, num_hidden_layers=1))
    assert window == mixer_flops(
        config_of("transformer", num_heads=2, window_size=5, num_hidden_layers=1)
    )


def test_the_weights_of_gla_take_what_torch_counts():
    config = config_of("gla", num_heads=2)
    model = build_model(config, vocabulary_size=40, bos_token_id=1, eos_token_id=2, seed=0)
    tokens = torch.randint(0, 40, (2, 64))
    with torch.no_grad():
        ops = counted(lambda: model(input_ids=tokens, labels=tokens))
    state = 2 * 16 * 32
    weights = train_flops_per_token(model, 64) / FORWARD_AND_BACKWARD - 2 * 4 * state
    assert ops["aten.mm"] + ops["aten.addmm"] == weights * tokens.numel()


# mixers


def decay_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    return (state * a + k @ v.T).T @ q


def delta_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    state = state * a
    return (state + k @ (v - state.T @ k).T).T @ q


def two_delta_steps(state: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    state = state + k @ (v - state.T @ k).T
    return (state + a @ (v - state.T @ a).T).T @ q


def rwkv7_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    return (state * a + q @ (state.T @ a).T + k @ v.T).T @ q


@pytest.mark.parametrize(
    ("step", "per_element"),
    [(decay_step, 4), (delta_step, 6), (two_delta_steps, 10), (rwkv7_step, 8)],
)
def test_a_recurrent_step_takes_what_torch_counts(step, per_element):
    state, q, k, a = (torch.randn(KEYS, n, requires_grad=True) for n in (VALUES, 1, 1, 1))
    v = torch.randn(VALUES, 1, requires_grad=True)
    forward = counted(lambda: step(state, q, k, v, a))["aten.mm"]
    both = counted(lambda: step(state, q, k, v, a).sum().backward())["aten.mm"]
    assert forward == per_element * KEYS * VALUES
    assert both == FORWARD_AND_BACKWARD * forward


@pytest.mark.parametrize(
    ("config", "per_element"),
    [
        (("gla", {"num_heads": 2, "expand_k": 0.5, "expand_v": 2.0}), 4),
        (("retnet", {"num_heads": 2, "expand_v": 2.0}), 4),
        (("hgrn2", {"expand_ratio": 16}), 4),
        (("delta_net", {"num_heads": 2, "expand_k": 0.5}), 6),
        (("gated_deltanet", {"num_heads": 2, "head_dim": 16, "num_v_heads": 4}), 6),
        (("gated_deltaproduct", {"num_heads": 2, "head_dim": 16, "num_householder": 2}), 10),
        (("kda", {"num_heads": 2, "num_v_heads": 4, "head_dim": 16}), 6),
        (("rwkv7", {"head_dim": 16}), 8),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_a_state_has_the_sizes_of_its_layer(config, per_element):
    config = config_of(config[0], **config[1])
    with torch.device("meta"):
        layer = instantiate_on_default_device(config).model.layers[1].attn
    heads = getattr(layer, "num_v_heads", layer.num_heads)
    keys = next(
        getattr(layer, name)
        for name in ("head_k_dim", "head_f_dim", "head_dim")
        if hasattr(layer, name)
    )
    values = layer.head_i_dim if hasattr(layer, "head_i_dim") else layer.head_v_dim
    assert mixer_flops(config) == 2 * per_element * heads * keys * values


def test_mamba2_and_gated_slot_attention_have_the_states_of_their_papers():
    mamba2 = config_of("mamba2", head_dim=16, state_size=24, expand=2)
    assert mixer_flops(mamba2) == 2 * 4 * (8 * 16 * 24)
    gsa = config_of("gsa", num_heads=2, num_slots=8)
    assert mixer_flops(gsa) == 2 * 4 * 2 * (32 * 8 + 8 * 32)


@pytest.mark.parametrize("window", [None, 1, 5, T, 2 * T])
def test_softmax_attention_counts_the_keys_that_a_token_sees(window):
    keys = sum(min(t + 1, window or T) for t in range(T)) / T
    transformer = config_of("transformer", num_heads=2, window_size=window)
    assert mixer_flops(transformer) == 2 * 4 * 64 * keys


@pytest.mark.parametrize("as_list", [False, True])
def test_a_hybrid_counts_each_layer_by_its_own_mixer(as_list):
    spec = {"layers": [1], "num_heads": 2, "window_size": 5}
    plain = config_of("gla", num_heads=2)
    hybrid = config_of("gla", num_heads=2, attn=[spec] if as_list else spec)
    softmax = config_of("transformer", num_heads=2, window_size=5)
    assert mixer_flops(hybrid) == (mixer_flops(plain) + mixer_flops(softmax)) / 2


def test_a_linear_model_costs_the_same_at_any_length_and_a_transformer_more():
    gla, transformer = config_of("gla", num_heads=2), config_of("transformer", num_heads=2)
    assert train_flops_per_token(gla, 64) == train_flops_per_token(gla, 8192)
    assert train_flops_per_token(transformer, 64) < train_flops_per_token(transformer, 8192)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("mesa_net", {}), ("qwen3_next", {}), ("gla", {"attnres_block_size": 2})],
)
def test_an_unknown_formula_gives_no_number(model_type, fields):
    assert train_flops_per_token(AutoConfig.for_model(model_type, **fields), T) is None


# devices


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
    ],
)
def test_a_hopper_has_the_dense_bfloat16_peak_of_its_data_sheet(name, peak):
    assert device_peak_flops(name) == peak
    assert device_peak_flops(name, torch.bfloat16) == peak


def test_peaks_are_known_by_exact_name_and_dtype():
    assert device_peak_flops("NVIDIA H200") == 989.5e12
    assert device_peak_flops("NVIDIA H200", torch.float16) == 989.5e12
    assert device_peak_flops("NVIDIA H200", torch.float32) is None
    assert device_peak_flops("NVIDIA H200 MIG 1g.18gb") is None
    assert device_peak_flops("cpu") is None
