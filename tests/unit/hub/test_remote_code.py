"""Exports load with `trust_remote_code=True` where nobody imports fla, and as before after it.

One process exports every model of fla; two load them, with the code in them or after the import.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_imports

from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.hub.export import export_model
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.hub.remote_code import write_remote_code_if_needed
from flame_accel.models.catalogue import fla_config_classes, tiny_config
from flame_accel.models.config_fields import INITIALIZATION_FIELDS
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.models.norms import copy_config_with_norm
from tests.helpers.runs import launch, launch_environment

NORM_VARIANTS = {
    "gla_np_layernorm": ("gla", "np_layernorm"),
    "rwkv7_rmsnorm": ("rwkv7", "rmsnorm"),
    "transformer_layernorm": ("transformer", "layernorm"),
}
NAMES_OF_TRANSFORMERS = ("bitnet", "mamba", "mamba2")
IDS = (torch.arange(32) * 7 % 250)[None]

LOAD_ALL = """
import sys, torch
from pathlib import Path
root, way, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
if way == "imported":
    import flame_accel
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids = (torch.arange(32) * 7 % 250)[None]
answers = {}
def load(name, key, **options):
    try:
        model = AutoModelForCausalLM.from_pretrained(root / name, **options).eval()
        answers[key] = model(ids, use_cache=False).logits.detach()
        return model
    except Exception as error:
        answers[key] = f"{type(error).__name__}: {error}"
if way == "imported":
    for name in names:
        load(name, name)
else:
    # before anything imports fla
    for name in ("bitnet", "mamba", "mamba2"):
        load(name, f"{name} alone")
    assert "fla" not in sys.modules
    for name in names:
        model = load(name, name, trust_remote_code=True)
        if model and name in ("gla", "gla_np_layernorm", "mamba2"):
            model.save_pretrained(root / "again" / name)
            load(f"again/{name}", f"{name} again", trust_remote_code=True)
torch.save(answers, root / f"{way}.pt")
"""


def change_initialization(config: PreTrainedConfig) -> None:
    """Gives fields that say how weights are drawn values that no class has as a default."""
    for name in INITIALIZATION_FIELDS & vars(config).keys():
        value = getattr(config, name)
        if isinstance(value, bool):
            # transformers' mamba2 takes out_proj as drawn anew if it is on, so it stays on there
            setattr(config, name, value and config.model_type in NAMES_OF_TRANSFORMERS)
        elif isinstance(value, float):
            setattr(config, name, value * 0.75)


def load_all(root: Path, way: str, names: list[str]) -> dict[str, Any]:
    script = root / "load_all.py"
    script.write_text(LOAD_ALL)
    arguments, environment = [str(root), way, *names], {"HF_HOME": str(root / "hf_home")}
    if way == "imported":
        # in a process that has imported everything, and that has not made these models
        printed = launch(arguments, config="cpu", processes=1, script=script, **environment)
    else:
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            env=launch_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        printed = done.stdout
        assert done.returncode == 0, printed[-4000:]
    answers = torch.load(root / f"{way}.pt")
    answers["printed"] = printed
    return answers


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder with an export of every model, and the logits of each."""
    root = tmp_path_factory.mktemp("exports")
    configs = {name: tiny_config(name, vocab_size=258) for name in fla_config_classes()}
    # without it transformers refuses the config by accident
    configs["bitnet"].intermediate_size = 128
    for name, (base, norm) in NORM_VARIANTS.items():
        configs[name] = copy_config_with_norm(tiny_config(base, vocab_size=258), norm)
    accelerator, tokenizer = Accelerator(cpu=True), load_tokenizer("byte", trust_remote_code=False)
    logits = {}
    for name, config in configs.items():
        change_initialization(config)
        model = instantiate_on_default_device(config).eval()
        logits[name] = model(IDS, use_cache=False).logits.detach()
        export_model(
            accelerator,
            model,
            tokenizer,
            root / name,
            dtype=torch.float32,
            card_origin=ModelOrigin(),
        )
    return root, logits


@pytest.fixture(scope="module")
def remote(exports: tuple[Path, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """What a process gets that imports neither fla nor flame_accel."""
    root, logits = exports
    return load_all(root, "remote", list(logits))


def assert_equal_logits(answers: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    wrong = {
        name: answers[name]
        for name, logits in expected.items()
        if not torch.is_tensor(answers[name]) or not torch.equal(answers[name], logits)
    }
    assert not wrong
    for words in ("custom code", "newly initialized", "double-check"):
        assert words not in answers["printed"], answers["printed"]


def test_every_model_has_its_logits_with_remote_code(exports, remote):
    assert_equal_logits(remote, exports[1])


def test_every_model_has_its_logits_after_the_import(exports):
    root, logits = exports
    assert_equal_logits(load_all(root, "imported", list(logits)), logits)


def test_a_model_that_is_saved_again_takes_its_code_along(exports, remote):
    root, logits = exports
    for name in ("gla", "gla_np_layernorm", "mamba2"):
        fields = [
            json.loads((folder / name / "config.json").read_text())
            for folder in (root, root / "again")
        ]
        assert fields[0]["auto_map"] == fields[1]["auto_map"]
        assert torch.equal(remote[f"{name} again"], logits[name])


def test_names_that_transformers_has_too_are_right_or_refused_there(exports, remote):
    for name in ("mamba", "mamba2"):
        torch.testing.assert_close(remote[f"{name} alone"], exports[1][name], atol=1e-5, rtol=1e-5)
    assert "fla's BitNet, not that of transformers: import fla" in remote["bitnet alone"]


def test_a_model_of_transformers_itself_needs_no_code(tmp_path):
    config = AutoConfig.for_model("llama")
    config.save_pretrained(tmp_path)
    write_remote_code_if_needed(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("name", ["gla", "gla_np_layernorm"])
def test_transformers_finds_no_import_in_the_code_whose_package_it_would_misname(exports, name):
    file = exports[0] / name / "modeling_fla.py"
    assert set(get_imports(file)) - sys.stdlib_module_names <= {"torch", "transformers"}
