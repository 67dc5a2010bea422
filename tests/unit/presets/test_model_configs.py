"""Laws of the model configs that ship: they build, as large as they say, without stray fields."""

import inspect
import json
import re

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from flame_accel.models.build import load_model_config
from flame_accel.models.flops import train_flops_per_token
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.parameter_groups import count_parameters
from flame_accel.models.registration import register_models
from tests.helpers.runs import ROOT

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.glob("*.json"))
FAMILIES = [
    "transformer",
    "gla",
    "delta_net",
    "gated_deltanet",
    "gated_deltanet_hybrid",
    "gated_deltaproduct",
    "kda",
    "mamba2",
    "gsa",
    "hgrn2",
    "retnet",
    "rwkv7",
]
SMALL = {"gla_1M", "delta_net_140K"}
"""For CPUs."""
MILLIONS = {"140K": (0.1, 0.2), "1M": (0.7, 1.3), "340M": (300, 420), "1.3B": (1200, 1500)}


@pytest.fixture(autouse=True)
def constructible(monkeypatch) -> None:
    register_models()
    monkeypatch.setattr("fla.layers.attn.flash_attn_func", object())


def test_every_family_ships_in_both_sizes():
    expected = {f"{family}_{size}" for family in FAMILIES for size in ("340M", "1.3B")}
    assert {file.stem for file in FILES} == expected | SMALL


# RWKV-7 initializes channel by channel in Python: seconds, even without memory
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=pytest.mark.slow) if "rwkv7" in file.stem else file
        for file in FILES
    ],
    ids=lambda file: file.stem,
)
def test_a_config_builds_and_has_the_size_in_its_name(file):
    with torch.device("meta"):
        model = instantiate_on_default_device(load_model_config(str(file)))
    smallest, largest = MILLIONS[file.stem.rpartition("_")[2]]
    assert smallest * 1e6 <= count_parameters(model).total <= largest * 1e6
    assert train_flops_per_token(model, 4096) is not None


def test_gla_340m_is_the_model_that_measurements_refer_to():
    with torch.device("meta"):
        model = instantiate_on_default_device(load_model_config(str(CONFIGS / "gla_340M.json")))
    assert round(count_parameters(model).total / 1e6, 1) == 374.5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_has_no_stray_field_and_survives_a_round_trip(file, tmp_path):
    fields = json.loads(file.read_text())
    known = inspect.signature(CONFIG_MAPPING[fields["model_type"]]).parameters.keys()
    common = inspect.signature(PreTrainedConfig).parameters.keys()
    assert fields.keys() <= known | common | {"model_type"}
    config = load_model_config(str(file))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {name: again[name] for name in fields} == fields
    assert re.match(fields["model_type"], file.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_trains_its_own_vocabulary_untied(file):
    config = load_model_config(str(file))
    assert not config.tie_word_embeddings
    assert config.fuse_cross_entropy
    tokens = (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.vocab_size)
    small = {"gla_1M": (None, 256, 257, 258), "delta_net_140K": (None, 64, 65, 67)}
    assert tokens == small.get(file.stem, (1, 2, None, 32000))
