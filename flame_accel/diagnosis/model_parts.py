"""What a model is made of: fla's layers and operators that its modules import.

Nothing is built or run for it: the modules of a model class and of the layers that it imports are
already loaded, and hold what they imported by name.
"""

import inspect
import sys

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from flame_accel.kernels.replacements import REPLACEMENTS

FLA_NAMES_BY_REPLACEMENT: dict[str, list[str]] = {}
"""Our function -> those of fla, below `fla.`, that it stands for where PyTorch serves."""
for _theirs, _ours in REPLACEMENTS.items():
    FLA_NAMES_BY_REPLACEMENT.setdefault(f"flame_accel.kernels.{_ours}", []).append(_theirs)


def find_reachable_fla_layers_and_operators(config: PreTrainedConfig) -> frozenset[str]:
    """Layers and operators that the model of a config may use, as dotted names below `fla.`.

    More than it does use: a layer imports what its other modes call, a model the layer of its
    hybrids. Empty for a model whose code is not loaded (`auto_map`).

    Returns:
        Such as `layers.gla` and `ops.gla.chunk.chunk_gla`.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return frozenset()
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    start = model_class.__module__
    rooms = ["fla.layers.", "fla.models."]
    if not start.startswith("fla."):
        # an architecture of the user's own may be spread over its package
        rooms += [start, f"{start.partition('.')[0]}."]
    parts: set[str] = set()
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in sys.modules:
            continue
        seen.add(module)
        if module.startswith("fla.layers."):
            parts.add(module.removeprefix("fla."))
        for imported_as, value in vars(sys.modules[module]).items():
            if inspect.isclass(value) and value.__module__.startswith(tuple(rooms)):
                waiting.append(value.__module__)
            elif inspect.isfunction(value):
                name = f"{value.__module__}.{value.__name__}"
                names = FLA_NAMES_BY_REPLACEMENT.get(name, [name.removeprefix("fla.")])
                # one of ours may stand for several of fla
                names = [each for each in names if each.endswith(f".{imported_as}")] or names
                parts.update(name for name in names if name.startswith("ops."))
    return frozenset(parts)
