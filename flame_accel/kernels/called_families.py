"""Records which operator families run during a piece of code. `replacements` lists them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flame_accel.kernels.replacements import ATTENTION_REPLACEMENTS, FAMILIES, FIXES


@contextmanager
def record_entered_replacement_modules() -> Iterator[set[str]]:
    """Collects the modules of our families whose code is entered, named as in `replacements`.

    Python code runs several times slower in the meantime, and another profiler pauses.
    """
    folder = Path(__file__).parent
    modules = {
        str(folder.joinpath(*module.split(".")).with_suffix(".py")): module
        for module in (*FAMILIES, *ATTENTION_REPLACEMENTS, *FIXES)
    }
    found: set[str] = set()

    def record_module_of_frame(frame: FrameType, event: str, argument: object) -> None:
        module = modules.get(frame.f_code.co_filename)
        if module is not None:
            found.add(module)

    previous = sys.getprofile()
    sys.setprofile(record_module_of_frame)
    try:
        yield found
    finally:
        sys.setprofile(previous)
