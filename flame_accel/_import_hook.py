"""What `import flame_accel` does: hooks on the imports of fla and transformers' auto classes.

`import flame_accel` has to be enough for fla's models to load and to run anywhere, and has to be
instant for the command line. So nothing heavy is imported here: when transformers' auto classes
appear, fla is imported (which registers its models), and when fla appears, the kernels for this
machine are put in place and the types with another norm are registered. What the kernels are lives
in `kernels/`, the norms in `models/norms`.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.modeling_auto"
FLA = "fla"


def _after_import(name: str) -> None:
    if name == AUTO_CLASSES:
        importlib.import_module(FLA)
    else:
        importlib.import_module("flame_accel.kernels").install()
        importlib.import_module("flame_accel.models.norms").register_norm_variants()


class _NotifyingLoader(Loader):
    """Runs the module as its own loader would, then what waits for it."""

    def __init__(self, loader: Loader, name: str) -> None:
        self.loader = loader
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with warnings.catch_warnings():
            # what fla says without Triton or flash-attn is taken care of by the kernels
            warnings.filterwarnings("ignore", message="Triton is not supported")
            warnings.filterwarnings("ignore", message="Flash Attention is not installed")
            self.loader.exec_module(module)
        _after_import(self.name)


class _Finder(MetaPathFinder):
    """Finds the two awaited modules through the other finders and wraps their loaders."""

    def __init__(self) -> None:
        self.awaited = {AUTO_CLASSES, FLA}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.awaited:
            return None
        self.awaited.discard(fullname)
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _NotifyingLoader(spec.loader, fullname)
                return spec
        return None


def prepare_fla() -> None:
    """Registers fla's models and this machine's kernels, now or when their packages are loaded."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    finder = _Finder()
    for name in (AUTO_CLASSES, FLA):
        if name in sys.modules:
            finder.awaited.discard(name)
            _after_import(name)
    sys.meta_path.insert(0, finder)
