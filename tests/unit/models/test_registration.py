"""Architectures of the user's own, registered from a file, a folder or a package."""

import pytest
from transformers import AutoConfig

from flame_accel.config.errors import UserError
from flame_accel.models.build import load_model_config
from flame_accel.models.registration import register_models
from tests.helpers.model_configs import build_small, custom_source, write


@pytest.mark.covers_option("model.custom")
def test_a_file_registers_an_architecture(tmp_path):
    module = str(write(tmp_path / "ownfile.py", custom_source("Ownfile")))
    register_models([module])
    register_models([module])
    config = load_model_config(str(write(tmp_path / "c.json", {"model_type": "ownfile"})))
    assert type(build_small(config)).__name__ == "OwnfileForCausalLM"


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
        load_model_config(str(file), custom_modules=[module])


def test_a_model_type_that_another_module_has_registered_is_refused_in_a_sentence(tmp_path):
    first = write(tmp_path / "owntwice.py", custom_source("Owntwice"))
    second = write(tmp_path / "other" / "owntwice_again.py", custom_source("Owntwice"))
    register_models([str(first)])
    message = "registers the model type 'owntwice', which owntwice has registered"
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            register_models([str(first), str(second)])
    assert AutoConfig.for_model("owntwice").__class__.__module__ == "owntwice"
