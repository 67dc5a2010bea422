"""Which architectures transformers' auto classes know: fla's, and those of `model.custom`.

Only what the user named is imported. Reading a model config and building a model live in
`build.py`.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from transformers import CONFIG_MAPPING

from flame_accel.config.errors import UsageError, UserError
from flame_accel.models.custom_code import custom_code, is_in_site_packages


def register_models(custom_modules: Sequence[str] = ()) -> None:
    """Registers fla's architectures and the user's own with transformers' auto classes.

    Args:
        custom_modules: importable packages, `.py` files or package folders, imported in this
            order. They call `AutoConfig.register` and `AutoModelForCausalLM.register`. The folder
            that holds a file or package joins the end of `sys.path`, so that it may import its
            neighbours. Naming one again does nothing.

    Raises:
        UserError: one is missing, raises, or has the name of a module that is already loaded.
    """
    importlib.import_module("fla")
    importlib.import_module("flame_accel.models.norms").register_norm_variants_of_fla_and_llama()
    for name in custom_modules:
        path = Path(name)
        if path.exists():
            _import_path_and_record_custom_code(name, path.resolve())
        elif path.suffix == ".py" or os.sep in name:
            raise _custom_model_error(
                name,
                "no such file or folder",
                f"the path is taken from {Path.cwd()}; give a .py file, a package folder or the "
                "name of an installed package",
            )
        else:
            _import_package_and_record_custom_code(name)


def _custom_model_error(where: str, what: str, remedy: str) -> UserError:
    return UsageError(what, where=f"--model.custom {where}", remedy=remedy)


def _import_package_and_record_custom_code(name: str) -> None:
    spec = importlib.util.find_spec(name.partition(".")[0])
    if spec is None:
        raise _custom_model_error(
            name,
            "no such package can be imported, and no such path exists",
            "install the package, or give the path of its folder or .py file",
        )
    modules_before = set(sys.modules)
    _import_or_explain_failure_or_replaced_type(
        name, os.path.dirname(spec.origin or ""), lambda: importlib.import_module(name)
    )
    origin = Path(spec.origin) if spec.has_location and spec.origin else None
    if origin is None or is_in_site_packages(origin):
        custom_code.record_installed_requirement(name)
    else:
        source = origin.parent if origin.name == "__init__.py" else origin
        custom_code.record_source_files(name, source, modules_before)


def _import_path_and_record_custom_code(name: str, path: Path) -> None:
    source = path / "__init__.py" if path.is_dir() else path
    if source.suffix != ".py" or not source.is_file():
        raise _custom_model_error(
            name,
            "neither a .py file nor a folder with an __init__.py",
            "add an __init__.py that registers your models, or name the .py file that does",
        )
    if path.stem in sys.modules:
        loaded_from = getattr(sys.modules[path.stem], "__file__", None)
        if loaded_from == str(source):
            return
        raise _custom_model_error(
            name,
            f"a module '{path.stem}' is already loaded from {loaded_from or 'Python itself'}",
            "rename your file or folder",
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    modules_before = set(sys.modules)
    _import_or_explain_failure_or_replaced_type(
        name, str(path.parent), lambda: _load_source_file(path.stem, source)
    )
    custom_code.record_source_files(path.stem, path, modules_before)


def _load_source_file(module_name: str, source: Path) -> ModuleType:
    folders = [str(source.parent)] if source.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(
        module_name, source, submodule_search_locations=folders
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _import_or_explain_failure_or_replaced_type(
    name: str, user_folder: str, load_module: Callable[[], ModuleType]
) -> None:
    """Runs the user's code; what it raises becomes a message with the line of theirs.

    A name that another module of the user has registered is an error as well: transformers would
    replace it without a word.
    """
    registered = dict(CONFIG_MAPPING._extra_content)
    try:
        load_module()
    except Exception as error:
        raise _custom_model_error(
            f"{name}: {_find_error_file_and_line(error, user_folder)}",
            f"importing it raised {type(error).__name__}: {error}",
            "correct that line; importing the module must be enough to register your models",
        ) from error
    replaced = [
        (model_type, before)
        for model_type, before in registered.items()
        if CONFIG_MAPPING[model_type] is not before and custom_code.has_class(before)
    ]
    if replaced:
        model_type, before = replaced[0]
        after = CONFIG_MAPPING[model_type]
        CONFIG_MAPPING._extra_content.update(registered)
        sys.modules.pop(after.__module__, None)
        raise _custom_model_error(
            name,
            f"registers the model type {model_type!r}, which {before.__module__} has registered",
            "choose another model_type in one of them, or name only one of them",
        )


def _find_error_file_and_line(error: Exception, preferred_folder: str) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    # the last line of the user's own: deeper ones belong to a library that it called
    own = [
        frame
        for frame in frames
        if preferred_folder and frame.filename.startswith(preferred_folder)
    ]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"
