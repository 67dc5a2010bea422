"""Models of `model.custom` take their code along: files, packages with parts, neighbours.

One process without any of it on its path loads them all, from folders and from the Hub.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import HfApi
from transformers import AutoConfig

from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.hub.export import export_model
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.models import register_models
from flame_accel.models.catalogue import TINY_FIELDS
from flame_accel.models.custom_code import custom_code
from flame_accel.models.instantiate import instantiate_on_default_device
from tests.helpers.hub_server import HubServer
from tests.helpers.model_configs import write
from tests.helpers.runs import launch_environment

ARCHITECTURE = """
from fla.models.gla import GLAConfig, GLAForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM
{imports}

class {name}Config(GLAConfig):
    model_type = "{type}"
    def __init__(self, scale=3.0, **fields):
        self.scale = scale
        super().__init__(**fields)

class {name}ForCausalLM(GLAForCausalLM):
    config_class = {name}Config
    def forward(self, *arguments, **options):
        outputs = super().forward(*arguments, **options)
        outputs.logits = scale_logits(outputs.logits, self.config.scale)
        return outputs

AutoConfig.register("{type}", {name}Config)
AutoModelForCausalLM.register({name}Config, {name}ForCausalLM)
"""
SCALE = "def scale_logits(logits, scale):\n    return logits * scale\n"
LOAD = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
root, hub_name = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
answers = {}
def load(key, place):
    try:
        model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True).eval()
        answers[key] = model((torch.arange(32) * 7 % 250)[None], use_cache=False).logits.detach()
        return model
    except ImportError as error:
        answers[key] = str(error)
sys.path.insert(0, str(root / "foreign"))
load("foreign", root / "ownpackage")
sys.path.pop(0), sys.modules.pop("ownpackage")
load("from the Hub", hub_name).save_pretrained(root / "again")
load("saved again", root / "again")
load("ownpackage", root / "ownpackage")
load("same name", root / "owntwice")
load("installed, missing", root / "owninstalled")
sys.path.append(str(root / "site-packages"))
load("owninstalled", root / "owninstalled")
torch.save(answers, root / "answers.pt")
"""


def architecture(name: str, imports: str) -> str:
    return ARCHITECTURE.format(name=name, type=name.lower(), imports=imports)


@pytest.fixture
def custom_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Logits of three models whose exports are in `tmp_path`, by model type."""
    source, installed = tmp_path / "source", tmp_path / "site-packages"
    write(source / "ownscale.py", architecture("OwnScale", "from ownscale_part import *"))
    write(source / "ownscale_part.py", SCALE)
    write(source / "ownpackage/__init__.py", "from .parts.model import OwnPackageConfig\n")
    write(source / "ownpackage/parts/__init__.py", "")
    write(source / "ownpackage/parts/model.py", architecture("OwnPackage", "from ..scale import *"))
    write(source / "ownpackage/scale.py", SCALE)
    write(installed / "owninstalled/__init__.py", architecture("OwnInstalled", "") + SCALE)
    write(installed / "own_installed-1.5.dist-info/METADATA", "Name: own-installed\nVersion: 1.5\n")
    write(installed / "own_installed-1.5.dist-info/top_level.txt", "owninstalled\n")
    monkeypatch.syspath_prepend(installed)
    accelerator, tokenizer = Accelerator(cpu=True), load_tokenizer("byte", trust_remote_code=False)
    logits = {}
    fields: dict[str, Any] = {**TINY_FIELDS, "vocab_size": 258, "scale": 5.0}
    for name in (str(source / "ownscale.py"), str(source / "ownpackage"), "owninstalled"):
        for record in ("files", "requirements"):
            monkeypatch.setattr(custom_code, record, {})
        monkeypatch.setattr(custom_code, "module_names", [])
        register_models([name])
        model_type = Path(name).stem
        # what an export contains is what was imported
        for path in source.rglob(f"{model_type}*.py"):
            path.write_text("raise SystemError\n")
        model = instantiate_on_default_device(AutoConfig.for_model(model_type, **fields)).eval()
        logits[model_type] = model((torch.arange(32) * 7 % 250)[None], use_cache=False).logits
        folder = tmp_path / model_type
        export_model(
            accelerator, model, tokenizer, folder, dtype=torch.float32, card_origin=ModelOrigin()
        )
    return logits


def copy_with_code_in_another_module(source: Path, target: Path) -> None:
    """Copies an export; the module that registers its architecture is named as the copy."""
    shutil.copytree(source, target)
    (target / f"custom_code/{source.name}.py").rename(target / f"custom_code/{target.name}.py")
    code = target / "modeling_fla.py"
    text = code.read_text()
    for end in ("'", ".py'"):
        text = text.replace(f"'{source.name}{end}", f"'{target.name}{end}")
    code.write_text(text)


def test_models_of_the_user_load_elsewhere_with_their_code(
    custom_models: dict[str, torch.Tensor], tmp_path: Path, local_hub: HubServer
):
    HfApi().create_repo("tester/own-scale")
    HfApi().upload_folder(folder_path=tmp_path / "ownscale", repo_id="tester/own-scale")
    write(tmp_path / "foreign/ownpackage/__init__.py", "")
    copy_with_code_in_another_module(tmp_path / "ownscale", tmp_path / "owntwice")
    subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), "tester/own-scale"],
        env=launch_environment(**local_hub.environment),
        check=True,
    )
    answers = torch.load(tmp_path / "answers.pt")
    for key, model_type in {
        "from the Hub": "ownscale",
        "saved again": "ownscale",
        "ownpackage": "ownpackage",
        # two models of one process may register the same name
        "same name": "ownscale",
        "owninstalled": "owninstalled",
    }.items():
        assert torch.equal(answers[key], custom_models[model_type]), key
    assert answers["installed, missing"] == (
        "this model needs the package owninstalled, which is not installed: "
        "pip install own-installed==1.5"
    )
    assert "another module 'ownpackage' is loaded from" in answers["foreign"]
    # no compiled files either
    files = {path.name for path in (tmp_path / "ownpackage/custom_code").rglob("*.*")}
    assert files == {"__init__.py", "model.py", "scale.py"}
    auto_map = json.loads((tmp_path / "ownpackage/config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == "modeling_fla.OwnPackageConfig"
