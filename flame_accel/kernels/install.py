"""Replaces fla's functions with PyTorch implementations, and restores them.

A function that fla dispatches through `fla/backends.py` gets a backend there. Any other is replaced
by name: where fla defines it and, found by identity, wherever a module of fla has imported it.
Modules imported later find the replacement. Which function replaces which is in `replacements`.
Without the flash-attn package softmax attention is replaced on every device, and so are the few
functions of fla that are wrong on every device.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from inspect import signature, unwrap
from typing import Any, Literal, NamedTuple, NoReturn

from flame_accel.config.errors import UserError
from flame_accel.kernels.cpu_settings import (
    keep_freed_memory_in_process,
    use_onednn_for_fp32_if_exact,
)
from flame_accel.kernels.replacements import (
    FIXES_EVERYWHERE,
    REPLACEMENTS,
    REPLACEMENTS_WITHOUT_FLASH_ATTN,
)
from flame_accel.kernels.tuning import (
    flame_accel_cache_folder,
    install_autotune_hook,
    uninstall_autotune_hook,
)
from flame_accel.kernels.tuning.warps import MISCOMPILED, wrap_with_safe_num_warps

KernelKind = Literal["auto", "torch", "triton"]
_undo_actions: list[Callable[[], None]] = []
_active: list[KernelKind] = []


class ResolvedAttribute(NamedTuple):
    """What a dotted path leads to."""

    owner: Any
    """A module or a class."""
    name: str
    value: Any
    """None if the owner has no such attribute."""


class Replacement(NamedTuple):
    """A function, and the one that replaces it."""

    original: Any
    ours: Any


def triton_has_device() -> bool:
    """Whether Triton is installed and has a driver for a device of this machine."""
    try:
        from triton.backends import backends
    except ImportError:
        return False
    return any(backend.driver.is_active() for backend in backends.values())


def install(new_kind: KernelKind = "auto") -> KernelKind:
    """Makes fla run on this machine, with other kernels if it ran before. Repeating is harmless.

    Install before a model is built: models keep the functions they are built with.

    Returns:
        The kernels that are active afterwards, "torch" or "triton".

    Raises:
        UserError: "triton" was asked for and Triton has no device.
    """
    kind = new_kind
    if kind == "auto":
        kind = "triton" if triton_has_device() else "torch"
    if kind == "triton" and not triton_has_device():
        raise UserError(
            "Triton kernels were asked for, and Triton has no device on this machine",
            where="model.kernels",
            remedy="use --model.kernels auto, which runs fla on PyTorch here",
        )
    if kind not in _active:
        uninstall()
        _active.append(kind)
        # the default lies in /tmp and is lost with it; Triton's own cache is in the home folder
        os.environ.setdefault(
            "TORCHINDUCTOR_CACHE_DIR", str(flame_accel_cache_folder() / "inductor")
        )
        _replace_fla_functions_with_checked_ones(FIXES_EVERYWHERE)
        if importlib.import_module("fla.layers.attn").flash_attn_func is None:
            _replace_fla_functions_with_checked_ones(REPLACEMENTS_WITHOUT_FLASH_ATTN)
        if kind == "torch":
            _install_torch_replacements()
        else:
            install_autotune_hook()
            _undo_actions.append(uninstall_autotune_hook)
            _limit_warps_of_miscompiled_kernels_if_hopper()
            _install_host_chunk_counting()
    return kind


def uninstall() -> None:
    """Restores what fla had before `install`."""
    while _undo_actions:
        _undo_actions.pop()()
    _active.clear()


def _install_torch_replacements() -> None:
    _replace_fla_functions_with_checked_ones(REPLACEMENTS)
    if not triton_has_device():
        from triton.runtime.jit import KernelInterface

        _set_attribute_with_undo(
            KernelInterface, "__getitem__", _raise_naming_operator_on_kernel_launch
        )
    _undo_actions.append(use_onednn_for_fp32_if_exact())
    keep_freed_memory_in_process()


def _limit_warps_of_miscompiled_kernels_if_hopper() -> None:
    if importlib.import_module("fla.utils").IS_NVIDIA_HOPPER:
        for path in MISCOMPILED:
            owner, name, kernel = _resolve_attribute_value_or_none(f"fla.{path}")
            _set_attribute_with_undo(owner, name, wrap_with_safe_num_warps(kernel))


def _install_host_chunk_counting() -> None:
    """Spares fla's operators from asking the device how long the documents of a batch are."""
    from fla import backends

    from flame_accel.kernels import boundaries_on_host, chunk_states

    class HostCountBackendUntilUninstall(backends.BaseBackend):
        backend_type = "flame_accel_host_count"
        # after those that have other kernels
        priority = 100
        active = True
        chunk_fwd_h = staticmethod(chunk_states.chunk_fwd_h)
        chunk_bwd_dh = staticmethod(chunk_states.chunk_bwd_dh)

        @classmethod
        def is_available(cls) -> bool:
            return cls.active

        def verify(self, function_name: str, *args: Any, **kwargs: Any) -> tuple[bool, str | None]:
            return boundaries_on_host.has_known_boundaries(*args, **kwargs), "unknown boundaries"

    replacements: dict[int, Replacement] = {}
    for path in (
        "ops.utils.index.prepare_chunk_indices",
        "ops.utils.index.prepare_position_ids",
        "ops.utils.index.get_max_num_splits",
        "modules.token_shift.prepare_maxlens",
    ):
        _, name, original = _resolve_attribute_value_or_none(f"fla.{path}")
        ours = getattr(boundaries_on_host, f"wrap_{name}")(original)
        replacements[id(original)] = Replacement(original, ours)
    _replace_in_loaded_modules(replacements)
    importlib.import_module("fla.ops.common.backends")
    backends.register("common")(HostCountBackendUntilUninstall)
    _undo_actions.append(lambda: setattr(HostCountBackendUntilUninstall, "active", False))


def _replace_fla_functions_with_checked_ones(our_paths_by_fla_path: Mapping[str, str]) -> None:
    importlib.import_module("fla")
    from flame_accel.kernels.argument_checks import check_arguments
    from flame_accel.kernels.signatures import bind_to_fla_signature_refusing_unsupported_arguments

    replacements: dict[int, Replacement] = {}
    for theirs, path in our_paths_by_fla_path.items():
        owner, name, original = _resolve_attribute_value_or_none(f"fla.{theirs}")
        module, _, our_name = path.rpartition(".")
        ours = getattr(importlib.import_module(f"flame_accel.kernels.{module}"), our_name)
        if original is None or isinstance(owner, type):
            _set_attribute_with_undo(owner, name, ours)
        else:
            # packed rows are what can be wrong in functions that are no operators
            checked = theirs.startswith("ops.") or "cu_seqlens" in signature(ours).parameters
            check = check_arguments if checked else None
            ours = bind_to_fla_signature_refusing_unsupported_arguments(name, original, ours, check)
            if not _try_register_fla_backend(original, ours):
                replacements[id(original)] = Replacement(original, ours)
    _replace_in_loaded_modules(replacements)


def _resolve_attribute_value_or_none(dotted_path: str) -> ResolvedAttribute:
    """Imports what a dotted path leads through, and looks its last name up."""
    owner_path, _, name = dotted_path.rpartition(".")
    if owner_path in sys.modules or owner_path.rpartition(".")[2].islower():
        owner = importlib.import_module(owner_path)
    else:
        owner = _resolve_attribute_value_or_none(owner_path).value
    return ResolvedAttribute(owner, name, getattr(owner, name, None))


def _try_register_fla_backend(original: Any, ours: Callable[..., Any]) -> bool:
    """Registers a backend with fla's dispatch; False if fla does not dispatch this function."""
    from fla import backends

    class TorchBackendUntilUninstall(backends.BaseBackend):
        backend_type = "flame_accel"
        priority = -1
        active = True

        @classmethod
        def is_available(cls) -> bool:
            return cls.active

    if unwrap(original) not in backends._function_registries:
        return False
    backends.register(original, backend=TorchBackendUntilUninstall)(ours)
    _undo_actions.append(lambda: setattr(TorchBackendUntilUninstall, "active", False))
    return True


def _raise_naming_operator_on_kernel_launch(kernel: Any, grid: Any) -> NoReturn:
    """Stands in for `kernel[grid]`, how all kernels are launched, where no kernel can run."""
    operator, frame = "an operator", sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("fla.ops.", "fla.modules.")):
            operator = f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    raise UserError(
        f"{operator} needs a Triton device, and this machine has none",
        remedy="use a GPU, or a model whose operators flame_accel/kernels/replacements.py lists",
    )


def _replace_in_loaded_modules(
    replacements_by_id: dict[int, Replacement], packages: tuple[str, ...] = ("fla",)
) -> None:
    """Replaces values by identity in all modules of fla and in dictionaries they hold (ACT2FN)."""
    for module_name, module in list(sys.modules.items()):
        if not any(f"{module_name}.".startswith(f"{package}.") for package in packages):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in replacements_by_id:
                _set_attribute_with_undo(module, name, replacements_by_id[id(value)].ours)
            elif type(value) is dict and not name.startswith("__"):
                for key, item in list(value.items()):
                    if id(item) in replacements_by_id:
                        _set_dict_item_with_undo(value, key, replacements_by_id[id(item)].ours)


def _set_attribute_with_undo(owner: Any, name: str, value: Any) -> None:
    if name in vars(owner):
        original = vars(owner)[name]
        _undo_actions.append(lambda: setattr(owner, name, original))
    else:
        _undo_actions.append(lambda: delattr(owner, name))
    setattr(owner, name, value)


def _set_dict_item_with_undo(owner: dict[Any, Any], key: Any, value: Any) -> None:
    original = owner[key]
    owner[key] = value
    _undo_actions.append(lambda: owner.update({key: original}))
