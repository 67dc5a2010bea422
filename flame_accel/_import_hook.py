"""The import hook of `import flame_accel`: prepares fla when fla or transformers is imported.

`import flame_accel` has to be enough for fla's models to load and to run anywhere, and has to be
instant for the command line. So nothing heavy is imported here: when transformers' auto classes are
imported, fla is too (which registers its models), and when fla is imported, the kernels for this
machine are installed, its Mamba configs read transformers' field names, and the model types with
another norm are registered. The kernels live in `kernels/`, the field names in
`models/mamba_fields`, the norms in `models/norms`, messages of other packages in
`suppressed_messages`.
"""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from flame_accel.suppressed_messages import suppress_known_import_warnings

AUTO_CLASSES = "transformers.models.auto.modeling_auto"
FLA = "fla"


def _import_fla_to_register_models() -> None:
    importlib.import_module(FLA)


def _install_kernels_and_model_variants() -> None:
    importlib.import_module("flame_accel.kernels").install()
    importlib.import_module(
        "flame_accel.models.mamba_fields"
    ).make_mamba_configs_accept_transformers_fields()
    importlib.import_module("flame_accel.models.norms").register_norm_variants_of_fla_and_llama()


_AFTER_IMPORT_OF = {
    AUTO_CLASSES: _import_fla_to_register_models,
    FLA: _install_kernels_and_model_variants,
}


@contextlib.contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage among the million objects that imports make.

    It would find none, for a fifth of the time that the imports take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _LoaderWithFlaSetup(Loader):
    """Loads a module as its own loader does, then prepares it."""

    def __init__(self, loader: Loader, name: str) -> None:
        self.loader = loader
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with pause_garbage_collection():
            with suppress_known_import_warnings():
                self.loader.exec_module(module)
            _AFTER_IMPORT_OF[self.name]()


class _FinderWithFlaSetup(MetaPathFinder):
    """Finds the awaited modules through the other finders and wraps their loaders, once each."""

    def __init__(self) -> None:
        self.awaited = set(_AFTER_IMPORT_OF)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.awaited:
            return None
        self.awaited.discard(fullname)
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _LoaderWithFlaSetup(spec.loader, fullname)
                return spec
        return None


def prepare_fla_now_or_later() -> None:
    """Registers fla's models and installs kernels, now or when their packages are imported."""
    if any(isinstance(finder, _FinderWithFlaSetup) for finder in sys.meta_path):
        return
    finder = _FinderWithFlaSetup()
    imported = [name for name in _AFTER_IMPORT_OF if name in sys.modules]
    finder.awaited.difference_update(imported)
    # first, since preparing the auto classes imports fla
    sys.meta_path.insert(0, finder)
    for name in imported:
        _AFTER_IMPORT_OF[name]()
