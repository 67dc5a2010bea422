"""The code that travels with a model, and `auto_map`: loading with `trust_remote_code=True`.

An export loads where nobody imports fla or flame_accel: config.json names classes of
`modeling_fla.py`, which is copied into it. Norms of another kind and the user's own architectures
travel as well; a model of transformers itself needs no code.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from flame_accel.files import write_bytes_atomically, write_json_atomically, write_text_atomically
from flame_accel.hub import modeling_fla
from flame_accel.hub.modeling_fla import CUSTOM_FOLDER
from flame_accel.json_text import parse_json_text
from flame_accel.models import block_norms, norms
from flame_accel.models.custom_code import CustomCode, custom_code

CODE_FILE = "modeling_fla.py"


def write_remote_code_if_needed(folder: Path, config: PreTrainedConfig) -> None:
    """Writes the code that a model needs into its folder, and `auto_map` into its config.json.

    Nothing is written for a model of transformers itself, or for one whose folder has its own code
    already.

    Args:
        folder: A model in the Hugging Face format.
        config: Its configuration.
    """
    config_file = folder / "config.json"
    fields: dict[str, Any] = parse_json_text(config_file.read_bytes())
    config_class = type(config)
    if "auto_map" in fields or config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    code = inspect.getsource(modeling_fla)
    module = config_class.__module__
    if module == norms.__name__:
        code = f"{code}\n\nimport_packages()\n{inspect.getsource(block_norms)}"
    elif custom_code.has_class(config_class):
        code = _fill_in_custom_constants(code, custom_code, [config_class, model_class])
        for name, content in custom_code.files.items():
            path = folder / CUSTOM_FOLDER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, content)
    elif not module.startswith("fla."):
        return
    write_text_atomically(folder / CODE_FILE, code)
    stem = CODE_FILE.removesuffix(".py")
    fields["auto_map"] = {
        "AutoConfig": f"{stem}.{config_class.__name__}",
        "AutoModelForCausalLM": f"{stem}.{model_class.__name__}",
    }
    write_json_atomically(config_file, fields, indent=2)


def _fill_in_custom_constants(code: str, custom: CustomCode, classes: list[type]) -> str:
    """Fills in the constants of the code file that say where the user's classes are."""
    values = {
        "CUSTOM_CLASSES": {each.__name__: each.__module__ for each in classes},
        "CUSTOM_FILES": tuple(sorted(custom.files)),
        "CUSTOM_IMPORTS": tuple(custom.module_names),
        "CUSTOM_REQUIREMENTS": dict(custom.requirements),
    }
    for name, value in values.items():
        code, replaced = re.subn(
            rf"^({name}: .+?) = .+$",
            lambda match, value=value: f"{match[1]} = {value!r}",
            code,
            flags=re.MULTILINE,
        )
        assert replaced == 1, name
    return code
