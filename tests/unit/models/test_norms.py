"""Laws of model.norm_type: what is replaced, what stays, and what an export says."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from flame_accel.config.errors import UserError
from flame_accel.models.build import build_model
from flame_accel.models.catalogue import fla_config_classes, tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.norms import (
    NATIVE_NORMS,
    WEIGHT_NEEDED,
    base_model_type,
    copy_config_with_norm,
    find_block_norms,
    norm_type_of,
)
from tests.helpers.checkpoints import undo_checkpoint
from tests.helpers.runs import read_records

NORM_TYPES = ("layernorm", "np_layernorm", "rmsnorm", "fused_rmsnorm")
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 256,
}


def build(config: PreTrainedConfig, norm_type: str | None = None) -> PreTrainedModel:
    return build_model(
        config,
        vocabulary_size=256,
        bos_token_id=1,
        eos_token_id=2,
        norm_type=norm_type,
        seed=0,
    )


def config_of(model_type: str) -> PreTrainedConfig:
    return LlamaConfig(**LLAMA) if model_type == "llama" else tiny_config(model_type)


def tokens() -> Tensor:
    return torch.randint(3, 256, (1, 32), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(tokens()).logits


def shake(model: PreTrainedModel) -> None:
    """Norms that are not ones, as after training."""
    for parent, name in find_block_norms(model):
        for parameter in getattr(parent, name).parameters():
            nn.init.normal_(parameter, 1.0, 0.1)


def by_hand(norm_type: str, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if "rms" in norm_type:
        y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    else:
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
    return y if weight is None else y * weight


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("model_type", ["gla", "transformer", "llama"])
def test_every_block_norm_and_the_final_one_is_what_was_asked_for(model_type, norm_type):
    model = build(config_of(model_type), norm_type)
    norms = [getattr(parent, name) for parent, name in find_block_norms(model)]
    assert len(norms) == 2 * model.config.num_hidden_layers + 1
    shake(model)
    x = torch.randn(3, model.config.hidden_size)
    for norm in norms:
        assert norm_type_of(norm) == norm_type
        eps = getattr(model.config, "norm_eps", 1e-6)
        expected = by_hand(norm_type, x, getattr(norm, "weight", None), eps)
        torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)
        assert len([*norm.parameters()]) == (norm_type != "np_layernorm")


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("model_type", ["gla", "rwkv7", "kda", "llama"])
def test_the_other_weights_are_those_of_the_same_seed(model_type, norm_type):
    plain, model = build(config_of(model_type)), build(config_of(model_type), norm_type)
    before, after = dict(plain.named_parameters()), dict(model.named_parameters())
    for name in before.keys() & after.keys():
        assert torch.equal(before[name], after[name]), name
    assert all("norm" in name for name in before.keys() ^ after.keys())


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("model_type", ["gla", "rwkv7", "llama"])
def test_an_export_loads_with_the_same_logits(model_type, norm_type, tmp_path):
    model = build(config_of(model_type), norm_type)
    shake(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.config) is type(model.config)
    # transformers' own RMSNorm takes the place of fla's in a llama
    tolerance = 1e-5 if (model_type, norm_type) == ("llama", "fused_rmsnorm") else 0.0
    torch.testing.assert_close(logits(loaded), logits(model), rtol=tolerance, atol=tolerance)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(loaded))


def test_fla_alone_loads_an_export_right_or_not_at_all(tmp_path, monkeypatch):
    for norm_type in NORM_TYPES:
        build(tiny_config("gla"), norm_type).save_pretrained(tmp_path / norm_type)
    # as without flame_accel: what it has registered is not there
    known = {
        name: value for name, value in CONFIG_MAPPING._extra_content.items() if "norm" not in name
    }
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", known)
    for norm_type in ("rmsnorm", "fused_rmsnorm"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / norm_type)
        assert norm_type_of(model.model.norm) == norm_type
    for norm_type in ("layernorm", "np_layernorm"):
        with pytest.raises(ValueError, match=f"gla_{norm_type}"):
            AutoModelForCausalLM.from_pretrained(tmp_path / norm_type)


def test_every_model_of_fla_takes_layernorm():
    for model_type in fla_config_classes():
        for norm_type in ("layernorm", "np_layernorm"):
            if norm_type == "np_layernorm" and model_type in WEIGHT_NEEDED:
                continue
            config = copy_config_with_norm(tiny_config(model_type), norm_type)
            with torch.device("meta"):
                model = instantiate_on_default_device(config)
            types = {
                norm_type_of(getattr(parent, name)) for parent, name in find_block_norms(model)
            }
            assert types == {norm_type}, model_type
            assert base_model_type(model.config) == model_type


def test_a_chosen_norm_can_be_chosen_again():
    config = copy_config_with_norm(tiny_config("gla"), "np_layernorm")
    back = copy_config_with_norm(config, "fused_rmsnorm")
    assert (config.model_type, back.model_type) == ("gla_np_layernorm", "gla")
    assert back.to_dict() == tiny_config("gla").to_dict()
    assert copy_config_with_norm(config, "layernorm").model_type == "gla_layernorm"


def test_what_a_model_has_by_itself_needs_no_type_of_its_own():
    for model_type, kind in NATIVE_NORMS.items():
        assert copy_config_with_norm(tiny_config(model_type), kind).model_type == model_type
    assert copy_config_with_norm(tiny_config("gla"), "rmsnorm").fuse_norm is False


@pytest.mark.parametrize(
    ("config", "norm_type", "message"),
    [
        (PreTrainedConfig(), "layernorm", "choose one of .*gla.*llama.*rwkv7"),
        (tiny_config("mamba2"), "np_layernorm", "the norms of mamba2 cannot be np_layernorm"),
        (tiny_config("mamba2"), "rmsnorm", "the norms of mamba2 cannot be rmsnorm"),
        (tiny_config("gla", attnres_block_size=2), "layernorm", "attnres_block_size"),
    ],
)
def test_norms_that_a_model_cannot_have_are_refused(config, norm_type, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        build(config, norm_type)


@pytest.mark.covers_option("model.norm_type")
def test_a_run_keeps_its_norm_over_a_restart_and_in_its_export(flags, train_here, tmp_path):
    changes = {"model.norm_type": "np_layernorm", "training.steps": 4, "checkpoint.interval": 2}
    train_here(flags(**changes))
    whole = [record["train/loss"] for record in read_records(tmp_path / "run")]
    undo_checkpoint(tmp_path / "run/checkpoint/step-4")
    train_here(flags(**changes))
    assert [record["train/loss"] for record in read_records(tmp_path / "run")] == whole
    exported = Path(tmp_path / "run/hf")
    assert json.loads((exported / "config.json").read_text())["model_type"] == "gla_np_layernorm"
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert {norm_type_of(getattr(*found)) for found in find_block_norms(model)} == {"np_layernorm"}
