"""Laws of building: what a config file may be, what a module may do, what a seed decides."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from flame_accel.config.errors import UserError
from flame_accel.models.build import build_model, load_model_config
from flame_accel.models.registration import register_models

CONFIGS = Path(__file__).parent.parent / "configs"
TINY_GLA = {
    "model_type": "gla",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "vocab_size": 40,
}

CUSTOM_MODEL = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from torch import nn

class {name}Config(PreTrainedConfig):
    model_type = "{type}"
    def __init__(self, vocab_size=40, hidden_size=8, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)

class {name}ForCausalLM(PreTrainedModel):
    config_class = {name}Config
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        {extra}
        self.post_init()

AutoConfig.register("{type}", {name}Config)
{register}
"""
REGISTER = "AutoModelForCausalLM.register({name}Config, {name}ForCausalLM)"


@pytest.fixture(autouse=True)
def registered() -> None:
    register_models()


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def custom_source(name: str, *, extra: str = "pass", register: str = REGISTER) -> str:
    return CUSTOM_MODEL.format(
        name=name, type=name.lower(), extra=extra, register=register.format(name=name)
    )


def build(config: PreTrainedConfig, **changes):
    arguments = {"vocabulary_size": 50, "bos_token_id": 1, "eos_token_id": 2, "seed": 7}
    return build_model(config, **{**arguments, **changes})


# loading a config


def test_a_file_and_the_folder_around_it_give_the_same_config(tmp_path):
    file = write(tmp_path / "config.json", TINY_GLA)
    assert load_model_config(str(file)).to_dict() == load_model_config(str(tmp_path)).to_dict()
    assert load_model_config(str(file)).hidden_size == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "gla",\n "hidden_size": 32,\n}', r"config\.json:3: not valid JSON"),
        ("[1, 2]", "holds a JSON list, not an object"),
        ({"hidden_size": 32}, "has no model_type"),
        ({"model_type": 3}, "model_type 3 is not known"),
        ({"model_type": "gated_deltanett"}, "did you mean gated_deltanet"),
        ({**TINY_GLA, "attn": {"layers": [9], "num_heads": 2}}, "out-of-range layer 9"),
        ({**TINY_GLA, "fuse_linear_cross_entropy": True}, "cannot be True at the same time"),
    ],
    ids=["syntax", "list", "untyped", "number", "typo", "layers", "losses"],
)
def test_a_wrong_config_file_is_refused_with_its_name_and_reason(tmp_path, content, message):
    file = write(tmp_path / "config.json", content)
    with pytest.raises(UserError, match=message) as error:
        load_model_config(str(file))
    assert str(file) in str(error.value)
    assert error.value.exit_code == 2


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_model_config(str(file))


def test_a_missing_file_names_its_neighbours():
    with pytest.raises(UserError, match=r"did you mean .*gla_340M\.json"):
        load_model_config(str(CONFIGS / "gla_430M.json"))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_model_config(str(tmp_path))


def test_a_hub_name_that_cannot_be_reached_is_refused(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("We couldn't connect\nto the Hub")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"owner/name: .*We couldn't connect\n"):
        load_model_config("owner/name")


@pytest.mark.covers_option("model.trust_remote_code")
def test_code_beside_a_config_runs_only_when_trusted(tmp_path):
    fields = {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig"}}
    write(tmp_path / "config.json", fields)
    write(
        tmp_path / "code.py",
        "from transformers import PreTrainedConfig\n"
        "class OwnConfig(PreTrainedConfig):\n    model_type = 'own'\n",
    )
    with pytest.raises(UserError, match=r"--model\.trust_remote_code"):
        load_model_config(str(tmp_path))


def test_an_unknown_field_is_logged_with_the_nearest_known_one(tmp_path, caplog):
    file = write(tmp_path / "c.json", {**TINY_GLA, "hiden_size": 64})
    with caplog.at_level(logging.WARNING):
        load_model_config(str(file))
    assert "no field 'hiden_size'; did you mean 'hidden_size'?" in caplog.text


@pytest.mark.parametrize("model_type", ["gla", "gsa", "rwkv7", "mamba2", "llama"])
def test_a_config_that_transformers_saved_has_no_unknown_field(tmp_path, caplog, model_type):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="flame_accel"):
        load_model_config(str(tmp_path))
    assert caplog.text == ""


# the user's own architectures


@pytest.mark.covers_option("model.custom")
def test_a_file_registers_an_architecture(tmp_path):
    module = str(write(tmp_path / "ownfile.py", custom_source("Ownfile")))
    register_models([module])
    register_models([module])
    config = load_model_config(str(write(tmp_path / "c.json", {"model_type": "ownfile"})))
    assert type(build(config)).__name__ == "OwnfileForCausalLM"


def test_a_package_folder_may_import_its_parts_and_neighbours(tmp_path):
    write(tmp_path / "ownpack" / "__init__.py", "from . import model\nimport ownpack_neighbour\n")
    write(tmp_path / "ownpack" / "model.py", custom_source("Ownpack"))
    write(tmp_path / "ownpack_neighbour.py", "")
    register_models([str(tmp_path / "ownpack")])
    assert AutoConfig.for_model("ownpack").hidden_size == 8


def test_a_package_is_imported_by_name(tmp_path, monkeypatch):
    write(tmp_path / "ownnamed" / "models" / "__init__.py", custom_source("Ownnamed"))
    monkeypatch.syspath_prepend(tmp_path)
    register_models(["ownnamed.models"])
    assert AutoConfig.for_model("ownnamed").hidden_size == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing_package", "no such package"),
        ("missing_package.models", "no such package"),
        ("json.missing", "ModuleNotFoundError"),
        ("missing/file.py", "no such file or folder"),
        ("missing.py", "no such file or folder"),
    ],
)
def test_a_module_that_is_missing_is_refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        register_models([name])
    assert f"--model.custom {name}" in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nx = x / 0\n", r"raises.py:2: .*ZeroDivisionError"),
        ("x = (\n", r"raises.py:1: .*SyntaxError"),
        ("import a_package_that_is_missing\n", r"raises.py:1: .*ModuleNotFoundError"),
        (
            "import transformers\n\ntransformers.AutoConfig.register('llama', "
            "transformers.LlamaConfig)\n",
            r"raises.py:3: .*already used by a Transformers",
        ),
    ],
    ids=["exception", "syntax", "import", "library"],
)
def test_a_module_that_raises_is_reported_with_its_own_line(tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        register_models([str(write(tmp_path / "raises.py", source))])


def test_a_folder_without_init_and_a_taken_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"__init__\.py"):
        register_models([str(tmp_path)])
    with pytest.raises(UserError, match="'json' is already loaded"):
        register_models([str(write(tmp_path / "json.py", ""))])


def test_a_module_that_registers_something_else_is_named(tmp_path):
    module = str(write(tmp_path / "ownother.py", custom_source("Ownother")))
    register_models([module])
    file = write(tmp_path / "c.json", {"model_type": "zzz"})
    with pytest.raises(UserError, match=r"ownother\.py \(--model.custom\) did not register it"):
        load_model_config(str(file), custom=[module])


def test_a_config_without_a_causal_language_model_is_refused(tmp_path):
    register_models([str(write(tmp_path / "ownhalf.py", custom_source("Ownhalf", register="")))])
    with pytest.raises(UserError, match=r"no causal language model .* OwnhalfConfig"):
        build(AutoConfig.for_model("ownhalf"))


# building


def test_the_vocabulary_and_special_tokens_follow_the_tokenizer():
    config = AutoConfig.for_model(**TINY_GLA)
    model = build(config, vocabulary_size=53, bos_token_id=50, eos_token_id=51, pad_token_id=52)
    assert model.get_input_embeddings().weight.shape == (53, 32)
    assert model.get_output_embeddings().weight.shape == (53, 32)
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (50, 51, 52)
    assert config.vocab_size == 40


@pytest.mark.parametrize("model_type", ["gla", "llama"])
def test_a_pad_token_that_is_the_end_of_a_document_keeps_its_row_of_the_embedding(model_type):
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    fields = {**TINY_GLA, "model_type": model_type, "pad_token_id": 2}
    config = AutoConfig.for_model(**fields, **(sizes if model_type == "llama" else {}))
    model = build(config, bos_token_id=2, eos_token_id=2, pad_token_id=2)
    assert model.get_input_embeddings().padding_idx is None
    assert model.get_input_embeddings().weight[2].abs().sum() > 0
    assert model.generation_config.pad_token_id == 2


def test_a_seed_decides_the_weights_and_leaves_the_generator_alone():
    config = AutoConfig.for_model(**TINY_GLA)
    torch.manual_seed(3)
    first = build(config).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    again, other = build(config).state_dict(), build(config, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_architecture_initializes_its_own_weights():
    config = AutoConfig.for_model(**{**TINY_GLA, "hidden_size": 256}, initializer_range=0.006)
    model = build(config, vocabulary_size=500)
    assert model.lm_head.weight.std().item() == pytest.approx(0.006, rel=0.02)


def test_weights_are_float32_on_the_cpu_whatever_the_config_or_context_says():
    config = AutoConfig.for_model(**TINY_GLA, dtype="bfloat16")
    with torch.device("meta"):
        model = build(config)
    assert model.config.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "changes",
    [{"num_heads": 3}, {"expand_k": 0.501}, {"num_heads": 0}, {"hidden_size": "32"}],
    ids=["heads", "expand", "zero", "type"],
)
def test_sizes_that_do_not_fit_are_the_users_to_correct(changes):
    with pytest.raises(UserError, match=r"model_type 'gla': the values .* do not fit") as e:
        build(AutoConfig.for_model(**{**TINY_GLA, **changes}))
    assert e.value.exit_code == 2


def test_a_package_that_a_layer_needs_is_named(monkeypatch):
    monkeypatch.setattr("fla.layers.attn.flash_attn_func", None)
    config = AutoConfig.for_model("transformer", hidden_size=32, num_hidden_layers=1, num_heads=2)
    with pytest.raises(UserError, match=r"package .* is missing: .*flash-attn"):
        build(config)


@pytest.mark.parametrize(
    ("name", "extra", "tensor"),
    [
        ("Poisonone", "self.scale = nn.Parameter(torch.empty(4))", "scale"),
        ("Poisontwo", "self.register_buffer('steps', torch.empty(4, dtype=torch.long))", "steps"),
    ],
)
def test_a_tensor_without_a_value_is_refused_by_name(tmp_path, name, extra, tensor):
    register_models([str(write(tmp_path / f"{name}.py", custom_source(name, extra=extra)))])
    with pytest.raises(UserError, match=f"leaves without a value: {tensor}$|: {tensor}\n"):
        build(AutoConfig.for_model(name.lower()))


def test_building_restores_the_deterministic_mode():
    for enabled in (False, True):
        torch.use_deterministic_algorithms(enabled, warn_only=enabled)
        try:
            build(AutoConfig.for_model(**TINY_GLA))
            assert torch.are_deterministic_algorithms_enabled() is enabled
            assert torch.is_deterministic_algorithms_warn_only_enabled() is enabled
        finally:
            torch.use_deterministic_algorithms(False)
