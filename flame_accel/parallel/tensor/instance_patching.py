"""Changes to one module instance that leave its class, and every other instance of it, alone."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from flame_accel.kernels.modules.equivalent_modes import INNER_FORWARD


def subclass_instance_in_place(module: nn.Module, members: dict[str, Any]) -> None:
    """Gives one module a subclass of its class, of the same name, with other members; in place."""
    base = type(module)
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    module.__class__ = type(base.__name__, (base,), names | members)


def replace_forward_globals(module: nn.Module, replacements: dict[str, Callable[..., Any]]) -> None:
    """Makes the forward of one module call other functions in place of global ones; in place.

    The globals themselves, which other modules share, stay as they are.

    Args:
        module: Gets a subclass with a forward of its own.
        replacements: Name of a global that the forward uses -> the function to call instead.

    Raises:
        RuntimeError: The forward's module has no such global.
    """
    forward: Any = type(module).forward
    name = "forward"
    if replacements.keys() - forward.__globals__.keys() and hasattr(forward, "__wrapped__"):
        # ours, which calls that of fla
        forward, name = forward.__wrapped__, INNER_FORWARD
    missing = replacements.keys() - forward.__globals__.keys()
    if missing:
        raise RuntimeError(f"{type(module).__name__}.forward has no {', '.join(sorted(missing))}")
    copy = FunctionType(
        forward.__code__,
        forward.__globals__ | replacements,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    subclass_instance_in_place(module, {name: copy})
