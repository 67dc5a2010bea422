"""A checkpoint of transformers' own format trains, and goes back to transformers as it came.

Checkpoints are made and read in processes that import neither fla nor flame_accel.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.runs import TINY_RUN, launch, launch_environment, read_losses

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 258, "initializer_range": 0.1}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 258},
    "kimi_linear": {
        **SMALL,
        "num_attention_heads": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_heads": 2,
        "linear_head_dim": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "llama": {**SMALL, **HEADS, "intermediate_size": 64, "tie_word_embeddings": True},
    # not the values that fla's class has by default, which calls these fields otherwise
    "mamba": {**SMALL, "state_size": 8, "layer_norm_epsilon": 1e-2, "time_step_rank": 4},
    "mamba2": {
        **SMALL,
        "head_dim": 16,
        "num_heads": 4,
        "state_size": 16,
        "n_groups": 2,
        "layer_norm_epsilon": 1e-2,
        "time_step_limit": [0.05, 0.2],
        "tie_word_embeddings": True,
    },
    "mixtral": {
        **SMALL,
        **HEADS,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmo_hybrid": {
        **SMALL,
        **HEADS,
        "intermediate_size": 64,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "qwen3": {**SMALL, **HEADS, "intermediate_size": 64},
    "qwen3_next": {
        **SMALL,
        **HEADS,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}

GROUPS = {
    "attention": ("gpt2", "llama", "qwen3"),
    "with a state": ("mamba", "mamba2", "olmo_hybrid"),
    "with experts": ("kimi_linear", "mixtral", "qwen3_next"),
}

WITHOUT_US = """
import json, sys
sys.modules["fla"] = sys.modules["flame_accel"] = None
import torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.set_num_threads(1)
torch.manual_seed(0)
ids = torch.arange(60).reshape(2, 30) % 50
def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits
def make(folder, fields):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    model.save_pretrained(folder)
    torch.save(logits(model), f"{folder}/logits.pt")
def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    torch.save({"logits": logits(model), "class": type(model).__module__}, f"{folder}/plain.pt")
for line in sys.stdin:
    action, *arguments = json.loads(line)
    globals()[action](*arguments)
    print("done", flush=True)
"""


class WithoutUs:
    """A process that knows transformers alone, which makes and loads models."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_US],
            env=launch_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def request(self, action: str, *arguments: Any) -> None:
        """Has it call one of its functions."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([action, *arguments]) + "\n")
        self.process.stdin.flush()
        # other packages print there too
        assert "done\n" in iter(self.process.stdout.readline, ""), f"{action} {arguments}"

    def make_checkpoints(self, folder: Path, names: tuple[str, ...]) -> None:
        """Makes a checkpoint of each of these `MODELS`, and its logits."""
        for name in names:
            fields = {"model_type": name, **SPECIAL, **MODELS[name]}
            self.request("make", str(folder / name), fields)


@pytest.fixture(scope="module")
def without_us() -> Iterator[WithoutUs]:
    other = WithoutUs()
    yield other
    other.process.communicate()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(60).reshape(2, 30) % 50
    training = model.training
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    model.train(training)
    return logits


@pytest.mark.parametrize("names", GROUPS.values(), ids=GROUPS)
def test_plain_checkpoints_train_packed_and_return_to_transformers(
    names, without_us, train_here, flags, tmp_path, monkeypatch
):
    from flame_accel import train

    without_us.make_checkpoints(tmp_path, names)
    seen: dict[str, torch.Tensor] = {}
    trained: dict[str, torch.Tensor] = {}
    train_loop = train.train

    def keep_logits(config: Any, accelerator: Any, components: Any, *rest: Any) -> None:
        seen["before"] = logits_of(components.model)
        train_loop(config, accelerator, components, *rest)
        seen["after"] = logits_of(components.model)

    monkeypatch.setattr(train, "train", keep_logits)
    for name in names:
        options = {
            "job.dump_folder": tmp_path / f"{name}-run",
            "model.config": tmp_path / name,
            "checkpoint.initial_load_path": tmp_path / name,
            "training.varlen": True,
            "training.steps": 4,
            "evaluation.sample_tokens": 4,
            "optimizer.lr": 1e-2,
        }
        train_here(flags(**options))
        plain = torch.load(tmp_path / name / "logits.pt")
        torch.testing.assert_close(seen["before"], plain, rtol=1e-4, atol=1e-5)
        losses = read_losses(tmp_path / f"{name}-run")
        assert losses[4] < losses[1], name
        trained[name] = seen["after"]

    folders = {
        name: [tmp_path / f"{name}-run" / folder for folder in ("hf", "checkpoint/step-4")]
        for name in names
    }
    for name in names:
        for folder in folders[name]:
            without_us.request("load", str(folder))
            loaded = torch.load(folder / "plain.pt")
            torch.testing.assert_close(loaded["logits"], trained[name], rtol=1e-4, atol=1e-5)
            assert loaded["class"].startswith(f"transformers.models.{name}.")


@pytest.mark.distributed
def test_two_ranks_of_fsdp2_continue_a_plain_checkpoint_as_one_process_does(
    without_us, tmp_path, corpus
):
    without_us.make_checkpoints(tmp_path, ("mixtral",))
    for name, processes in (("one", 1), ("two", 2)):
        options: dict[str, Any] = {
            "job.dump_folder": tmp_path / name,
            "model.config": tmp_path / "mixtral",
            "checkpoint.initial_load_path": tmp_path / "mixtral",
            "training.dataset": corpus,
            "training.varlen": True,
            "training.gradient_accumulation_steps": 2 // processes,
            **TINY_RUN,
            "training.steps": 4,
            "training.mixed_precision_param": "float32",
            "evaluation.sample_tokens": 0,
        }
        argv = [f"--{option}={value}" for option, value in options.items()]
        launch(argv, config={1: "cpu", 2: "fsdp2"}[processes], processes=processes)
    one, two = (read_losses(tmp_path / name) for name in ("one", "two"))
    assert two.keys() == {1, 2, 3, 4}
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    # stored as transformers stores them, expert by expert
    stored = [load_file(tmp_path / name / "hf/model.safetensors") for name in ("one", "two")]
    assert stored[0].keys() == load_file(tmp_path / "mixtral/model.safetensors").keys()
    assert stored[0].keys() == stored[1].keys()
    for name, weight in stored[0].items():
        torch.testing.assert_close(stored[1][name], weight, rtol=1e-3, atol=1e-4)
