"""Lets transformers load this model with `trust_remote_code=True`, without any import before.

The architecture itself is in the package flash-linear-attention (fla) or, if the author of the
model wrote it, in the folder custom_code next to this file. This file imports it, says which
package is missing, and provides the classes that `auto_map` in config.json names. flame_accel puts
it into the models that it exports.
"""

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationMixin, PreTrainedConfig
from transformers.utils.hub import cached_file

FLA_COMMAND = "pip install flash-linear-attention"
FLAME_ACCEL_COMMAND = "pip install /path/to/the/checkout"
"""It is on no package index: installed from a checkout of its repository."""
CUSTOM_FOLDER = "custom_code"
CUSTOM_CLASSES: dict[str, str] = {}
"""Classes that are not fla's: name of the class to name of the module that has it."""
CUSTOM_FILES: tuple[str, ...] = ()
"""Files in `CUSTOM_FOLDER` that hold these modules, or what they import."""
CUSTOM_IMPORTS: tuple[str, ...] = ()
"""Modules to import, in this order: they register the model's classes with transformers."""
CUSTOM_REQUIREMENTS: dict[str, str] = {}
"""Installed packages that hold these modules: name to what `pip install` takes."""
_imported_from: list[Path] = []
DOWNLOAD_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "token",
)
"""Arguments of `from_pretrained` that say how files of a repository are fetched."""


def import_packages() -> None:
    """Imports fla, and flame_accel where it is installed: it runs fla on any device.

    Raises:
        ImportError: fla is not installed.
    """
    # not import statements: transformers looks for those in this file, and names other packages
    try:
        if has_flame_accel():
            importlib.import_module("flame_accel")
        importlib.import_module("fla.models")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "fla":
            raise
        raise ImportError(
            "this model needs the package flash-linear-attention (fla), which is not installed: "
            f"{FLA_COMMAND}"
        ) from error


def check_flame_accel_or_triton_device() -> None:
    """Checks that fla's operators can run on this machine.

    Raises:
        ImportError: Triton has no device, and flame_accel is not installed.
    """
    if not has_flame_accel() and not triton_has_device():
        raise ImportError(
            "Triton, in which flash-linear-attention is written, has no device on this machine. "
            "The package flame_accel runs it on PyTorch instead, and is not installed (a folder of "
            "that name does not count): it is on no package index, but in a checkout of its "
            f"repository, {FLAME_ACCEL_COMMAND}"
        )


def has_flame_accel() -> bool:
    """Whether the package is there, and not only a folder of its name, such as a checkout's."""
    spec = importlib.util.find_spec("flame_accel")
    return spec is not None and spec.origin is not None


def triton_has_device() -> bool:
    """Whether Triton is installed and has a driver for a device of this machine."""
    try:
        backends = importlib.import_module("triton.backends").backends
    except ImportError:
        return False
    return any(backend.driver.is_active() for backend in backends.values())


def __getattr__(name: str) -> Any:
    """The class of a name in `auto_map`, derived from fla's or the author's of that name.

    A derived class belongs to this module, which is how `save_pretrained` knows that this file has
    to be saved again.
    """
    if name.startswith("__"):
        raise AttributeError(name)
    import_packages()
    if not name.endswith("Config"):
        check_flame_accel_or_triton_device()
    base = load_base_class_unless_author_files_pending(name)
    if base is None:
        return make_custom_config_loader(name)
    derived = derive_class_of_this_module(base)
    globals()[name] = derived
    return derived


def load_base_class_unless_author_files_pending(name: str) -> type | None:
    """The class to derive from; None if its code is in files that have not been imported yet."""
    if name in CUSTOM_CLASSES:
        if not CUSTOM_FILES:
            import_custom_modules()
        return getattr(sys.modules.get(CUSTOM_CLASSES[name]), name, None)
    for kind, prefix in globals().get("NORM_NAMES", {}).items():
        if name.startswith(prefix):
            return derive_class_with_norm(kind, name.removeprefix(prefix))
    models = sys.modules["fla.models"]
    if not hasattr(models, name):
        version = getattr(sys.modules["fla"], "__version__", "of unknown version")
        raise ImportError(
            f"flash-linear-attention {version} has no class {name}, which this model needs: "
            f"{FLA_COMMAND} --upgrade"
        )
    return getattr(models, name)


def derive_class_with_norm(norm_kind: str, class_name: str) -> Any:
    """A class of fla or transformers with norms of another kind.

    For models that have them, their code follows in this file.
    """
    library = (
        sys.modules["fla.models"]
        if hasattr(sys.modules["fla.models"], class_name)
        else transformers
    )
    base = getattr(library, class_name)
    is_config = issubclass(base, PreTrainedConfig)
    config_class = base if is_config else base.config_class
    variant = globals()["derive_norm_variant"](
        config_class, MODEL_FOR_CAUSAL_LM_MAPPING[config_class], norm_kind, module_name=__name__
    )
    return variant.config_class if is_config else variant.model_class


def derive_class_of_this_module(base: Any) -> Any:
    """The same config or model class as a member of this module."""

    # a config class without an __init__ would get that of a dataclass from transformers
    @functools.wraps(base.__init__)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        base.__init__(self, *arguments, **options)

    members = {"__module__": __name__, "__doc__": base.__doc__, "__init__": __init__}
    if issubclass(base, PreTrainedConfig):
        if CUSTOM_FILES:

            def save_pretrained(self: Any, save_directory: Any, **options: Any) -> None:
                base.save_pretrained(self, save_directory, **options)
                copy_author_files(Path(save_directory))

            members |= {"save_pretrained": save_pretrained}
        return type(base.__name__, (base,), members)
    config_class = getattr(sys.modules[__name__], base.config_class.__name__)
    # transformers looks for the mixin among the direct bases
    bases = (base, GenerationMixin) if issubclass(base, GenerationMixin) else (base,)
    return type(base.__name__, bases, members | {"config_class": config_class})


def make_custom_config_loader(class_name: str) -> type:
    """Stands for a config class until `from_pretrained` says where its code is."""

    class ConfigOfCustomFiles:
        @classmethod
        def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
            """Called by transformers before the code is known."""

        @classmethod
        def from_pretrained(cls, folder_or_repository: Any, **options: Any) -> Any:
            import_author_files_or_raise_on_name_clash(
                fetch_author_files(folder_or_repository, **options)
            )
            config_class = getattr(sys.modules[__name__], class_name)
            config_class.register_for_auto_class()
            return config_class.from_pretrained(folder_or_repository, **options)

    return ConfigOfCustomFiles


def fetch_author_files(folder_or_repository: Any, **options: Any) -> Path:
    """The folder with the author's files, downloaded if it is in a repository."""
    download = {name: options[name] for name in DOWNLOAD_OPTIONS if name in options}
    files = [
        cached_file(folder_or_repository, f"{CUSTOM_FOLDER}/{name}", **download)
        for name in CUSTOM_FILES
    ]
    # links are not followed: the files of the cache lie in another folder, under another name
    return Path(str(files[0])).absolute().parents[len(Path(CUSTOM_FILES[0]).parts) - 1]


def import_author_files_or_raise_on_name_clash(folder: Path) -> None:
    """Imports the author's modules under their own names.

    Raises:
        ImportError: A different module of the same name is loaded already.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    # the folder of a model is no place for compiled files
    writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        import_custom_modules()
    finally:
        sys.dont_write_bytecode = writes_no_bytecode
    for file in CUSTOM_FILES:
        module = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        loaded = getattr(sys.modules.get(module), "__file__", None)
        if loaded and Path(loaded).read_bytes() != (folder / file).read_bytes():
            raise ImportError(
                f"this model needs {folder / file}, but another module '{module}' is loaded from "
                f"{loaded}: load the model in a process of its own"
            )
    _imported_from.append(folder)


def import_custom_modules() -> None:
    """Imports the modules that register the model's classes with transformers.

    Raises:
        ImportError: A package that holds one is not installed.
    """
    for name in CUSTOM_IMPORTS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in CUSTOM_REQUIREMENTS:
                raise
            raise ImportError(
                f"this model needs the package {package}, which is not installed: "
                f"pip install {CUSTOM_REQUIREMENTS[package]}"
            ) from error


def copy_author_files(resaved_model: Path) -> None:
    """Copies the author's files into the folder of a model that is saved again."""
    for name in CUSTOM_FILES:
        target = resaved_model / CUSTOM_FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((_imported_from[-1] / name).read_bytes())
