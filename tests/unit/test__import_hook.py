"""`import flame_accel` is enough for fla's models, in whatever order packages are imported."""

import gc
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from flame_accel import _import_hook
from tests.helpers.runs import launch_environment

MODEL = """
config = AutoConfig.for_model("gla", hidden_size=32, num_hidden_layers=1, num_heads=2, vocab_size=9)
model = AutoModelForCausalLM.from_config(config)
logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
print(type(model).__name__, tuple(logits.shape), AutoConfig.for_model("gla_layernorm").model_type)
"""


AUTO_CLASSES = "from transformers import AutoConfig, AutoModelForCausalLM"


# each order is a fresh process, which imports for seconds
@pytest.mark.parametrize(
    "imports",
    [
        # in the middle of Llama's own module, fla is imported and all is registered
        pytest.param(
            f"import flame_accel, torch; from transformers import LlamaConfig; {AUTO_CLASSES}",
            id="before transformers",
        ),
        pytest.param(
            f"import torch; {AUTO_CLASSES}; import flame_accel",
            id="after transformers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            f"import fla, flame_accel, torch; {AUTO_CLASSES}",
            id="after fla",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_models_of_fla_load_and_run_without_a_gpu(imports):
    done = subprocess.run(
        [sys.executable, "-c", imports + MODEL],
        env=launch_environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "GLAForCausalLM (1, 3, 9) gla_layernorm\n", done.stderr
    if not imports.startswith("import fla,"):
        # not a line of another package; an fla that was imported first has printed its own
        assert done.stderr == ""


def test_the_import_alone_loads_neither_torch_nor_transformers():
    code = "import sys, flame_accel; print({'torch', 'transformers', 'fla'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=launch_environment(), capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr


def test_no_garbage_is_looked_for_while_fla_is_imported(monkeypatch: pytest.MonkeyPatch):
    collecting = []

    def record_whether_collecting(*_: object) -> None:
        collecting.append(gc.isenabled())

    monkeypatch.setitem(_import_hook._AFTER_IMPORT_OF, "fla", record_whether_collecting)
    own_loader = SimpleNamespace(exec_module=record_whether_collecting)
    _import_hook._LoaderWithFlaSetup(own_loader, "fla").exec_module(ModuleType("fla"))
    assert collecting == [False, False] and gc.isenabled()
