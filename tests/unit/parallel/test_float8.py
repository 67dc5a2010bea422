"""Matrix products in 8-bit floats: which layers, how close to fp32, and what is not supported."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchao.float8.float8_linear import Float8Linear
from transformers import AutoModelForCausalLM, PreTrainedModel

from flame_accel.config import Float8Config, UserError
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel.float8 import check_float8_support, convert_to_float8
from tests.helpers.runs import ROOT, launch, read_records

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
ONE_PROCESS = SimpleNamespace(is_fsdp2=False, distributed_type="NO", parallelism_config=None)


def build(model_type: str, recipe: str | None = None, **fields) -> PreTrainedModel:
    model = instantiate_on_default_device(
        tiny_config(model_type, hidden_size=256, initializer_range=0.02, **fields), seed=0
    )
    if recipe is not None:
        convert_with_recipe(model, recipe_name=recipe)
    return model


def convert_with_recipe(model: PreTrainedModel, **options) -> None:
    convert_to_float8(model, Float8Config(emulate=True, **options))


def converted_layers(model: PreTrainedModel) -> set[str]:
    """Names within the second layer."""
    return {
        name.partition("layers.1.")[2]
        for name, module in model.named_modules()
        if isinstance(module, Float8Linear) and "layers.0." not in name
    }


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        # not the gate's two narrow matrices, not the head
        ("gla", {}, {f"attn.{name}_proj" for name in "qkvgo"}),
        ("transformer", {}, {f"attn.{name}_proj" for name in "qkvo"}),
        # o_proj's weight goes into a fused kernel; the layer has no narrower heads
        ("hgrn2", {}, {f"attn.{name}_proj" for name in "qfi"}),
        # sides that are no multiple of sixteen
        ("transformer", {"intermediate_size": 520}, {f"attn.{name}_proj" for name in "qkvo"}),
    ],
)
def test_the_large_layers_are_converted(model_type, fields, expected):
    mlp = set() if fields else {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert converted_layers(build(model_type, "tensorwise", **fields)) == expected | mlp


@pytest.mark.parametrize("model_type", ["gla", "transformer"])
def test_weights_keep_their_names_types_and_values(model_type):
    before = build(model_type)
    after = build(model_type, "tensorwise")
    parameters = dict(after.named_parameters())
    assert [*parameters] == [name for name, _ in before.named_parameters()]
    for name, weight in before.named_parameters():
        assert type(parameters[name]) is nn.Parameter and torch.equal(parameters[name], weight)


def train_two_steps(model: PreTrainedModel) -> tuple[list[float], list[Tensor]]:
    """Losses of three batches with two updates between, and the first gradients of the weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    losses, gradients = [], []
    for _ in range(3):
        tokens = torch.randint(3, 256, (2, 64), generator=generator)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        gradients = gradients or [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients


@pytest.fixture(scope="module")
def in_fp32() -> dict[str, tuple[list[float], list[Tensor]]]:
    return {model_type: train_two_steps(build(model_type)) for model_type in ("gla", "transformer")}


@pytest.mark.covers_option("float8.recipe_name")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model_type", ["gla", "transformer"])
def test_training_is_close_to_that_in_fp32(model_type, recipe, in_fp32):
    losses, gradients = train_two_steps(build(model_type, recipe))
    expected_losses, expected_gradients = in_fp32[model_type]
    assert losses != expected_losses
    # three bits of mantissa round a number by up to 6%; sums over hundreds average most of it out
    assert losses == pytest.approx(expected_losses, rel=0.01)
    if model_type == "gla":
        # much of its gradient comes from few early tokens, whose state is almost empty
        return
    for found, expected in zip(gradients, expected_gradients, strict=True):
        if expected.ndim == 2:
            cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
            assert cosine > 0.95


def test_an_export_has_no_float8_layers(flags, train_here, tmp_path):
    config = tmp_path / "wide.json"
    tiny_config("gla", hidden_size=256, vocab_size=258).to_json_file(config)
    changes = {
        "model.config": config,
        "model.converters": "float8",
        "float8.emulate": True,
        "training.steps": 2,
        "training.warmup_steps": 1,
        "evaluation.sample_tokens": 0,
    }
    train_here(flags(**changes))
    assert len(read_records(tmp_path / "run")) == 2
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run/hf")
    assert not any(isinstance(module, Float8Linear) for module in exported.modules())
    assert {parameter.dtype for parameter in exported.parameters()} == {exported.dtype}


@pytest.mark.covers_option(
    "float8.enable_fsdp_float8_all_gather", "float8.precompute_float8_dynamic_scale_for_fsdp"
)
@pytest.mark.distributed
def test_gathering_in_8_bits_changes_nothing():
    """The program sets float8.precompute_float8_dynamic_scale_for_fsdp."""
    launch(
        ["float8_gathers_alike"],
        config="fsdp2",
        processes=2,
        script=ROOT / "tests/helpers/fsdp2_programs.py",
    )


@pytest.mark.covers_option("float8.emulate")
def test_missing_hardware_is_refused():
    with pytest.raises(UserError, match=r"capability 8.9 .*\n.*--float8.emulate"):
        check_float8_support(ONE_PROCESS, Float8Config(recipe_name="tensorwise"))


def test_missing_torchao_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match="pip install torchao"):
        check_float8_support(ONE_PROCESS, Float8Config(recipe_name="tensorwise", emulate=True))


def test_a_model_without_a_suitable_layer_is_refused():
    with pytest.raises(UserError, match="no linear layer of this gla"):
        convert_with_recipe(
            instantiate_on_default_device(tiny_config("gla")), recipe_name="tensorwise"
        )


def test_8_bit_gathering_needs_sharding():
    with pytest.raises(UserError, match="no weights are gathered"):
        check_float8_support(
            ONE_PROCESS,
            Float8Config(
                recipe_name="tensorwise", emulate=True, enable_fsdp_float8_all_gather=True
            ),
        )


@pytest.mark.covers_option("float8.force_recompute_fp8_weight_in_bwd")
def test_no_weight_is_saved_in_8_bits_for_the_backward_pass(configured):
    config = configured(
        **{
            "float8.recipe_name": "tensorwise",
            "float8.emulate": True,
            "float8.force_recompute_fp8_weight_in_bwd": True,
        }
    )
    model = instantiate_on_default_device(tiny_config("gla", hidden_size=128), seed=0)
    convert_to_float8(model, config.float8)
    assert any("Float8" in type(module).__name__ for module in model.modules())
    saved = []
    ids = torch.arange(32)[None]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        model(input_ids=ids, labels=ids)
    assert len(saved) > 10 and all(tensor.element_size() >= 4 for tensor in saved)
