"""Packing is refused for exactly those of fla's models that have a layer which ignores it."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from flame_accel.config import UserError
from flame_accel.models.packing import IGNORES_CU_SEQLENS, refuse_packing


def models_that_ignore_boundaries() -> set[str]:
    """Model types of fla one of whose layers has no word of `cu_seqlens` in its source."""
    import fla.layers
    import fla.models

    layers = Path(fla.layers.__file__).parent
    found = set()
    for info in pkgutil.iter_modules(fla.models.__path__):
        if not info.ispkg:
            continue
        package = importlib.import_module(f"fla.models.{info.name}")
        folder = Path(package.__file__).parent
        source = "".join(path.read_text() for path in folder.glob("modeling_*.py"))
        used = set(re.findall(r"from fla\.layers\.(\w+) import", source)) - {"utils"}
        if any("cu_seqlens" not in (layers / f"{name}.py").read_text() for name in used):
            configs = "".join(path.read_text() for path in folder.glob("configuration_*.py"))
            found.update(re.findall(r"model_type\s*=\s*['\"]([\w-]+)['\"]", configs))
    return found


def test_the_refused_models_are_those_whose_layers_ignore_boundaries():
    assert models_that_ignore_boundaries() == IGNORES_CU_SEQLENS


def test_packing_is_refused_by_name():
    with pytest.raises(UserError, match="mamba2 does not keep packed documents apart"):
        refuse_packing(AutoConfig.for_model("mamba2"))
    refuse_packing(AutoConfig.for_model("gla"))
