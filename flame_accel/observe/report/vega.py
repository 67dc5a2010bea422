"""Vega-Lite as it is used here: the JavaScript for the page, and pictures without a browser.

Both come from the package vl-convert-python, which holds Vega and runs it in V8. Its first use on a
machine is in a process of its own: where V8 may not have executable memory it aborts its process,
which must not be the one that trains. The JavaScript is then kept in the user's cache folder.
"""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from flame_accel.files import write_text_atomically
from flame_accel.kernels.tuning.tuned_configs import flame_accel_cache_folder

PACKAGE = "vl-convert-python"
SECONDS_TO_START = 120
_PRINT_JAVASCRIPT = (
    "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
)
VegaLiteSpec = dict[str, Any]


class VegaError(RuntimeError):
    """Vega cannot be used here; `str()` says why."""


def load_javascript() -> str:
    """Vega, Vega-Lite and vega-embed as the text of one script: `vegaEmbed` is then a global.

    Raises:
        VegaError: The package is missing, or does not run on this machine.
    """
    try:
        path = flame_accel_cache_folder() / f"vega-{version(PACKAGE)}.js"
    except PackageNotFoundError:
        raise VegaError(f"the package {PACKAGE} is not installed") from None
    try:
        text = path.read_text(encoding="utf-8")
        if text.endswith(_END_MARK):
            return text
    except (OSError, UnicodeDecodeError):
        pass
    text = _run_in_own_process(_PRINT_JAVASCRIPT) + _END_MARK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, text)
    except OSError:
        # it is made again the next time
        pass
    return text


_END_MARK = "\n// end\n"
"""Tells a whole file from a part of one."""


def render_picture(spec: VegaLiteSpec, format: Literal["png", "svg"], *, scale: float = 1) -> bytes:
    """A picture of a chart, without a browser or a network.

    Args:
        spec: In Vega-Lite, with its data.
        format: Of the picture.
        scale: Pixels of a PNG for each pixel of the chart.

    Raises:
        VegaError: The package is missing, does not run on this machine, or refuses the chart.
    """
    load_javascript()
    import vl_convert

    try:
        text = json.dumps(spec, allow_nan=False)
        if format == "svg":
            return vl_convert.vegalite_to_svg(text, allowed_base_urls=[]).encode()
        return vl_convert.vegalite_to_png(text, scale=scale, allowed_base_urls=[])
    except BaseException as error:
        # a panic of its Rust is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise VegaError(f"Vega refuses the chart: {error}") from error
        raise


def _run_in_own_process(program: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS_TO_START,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VegaError(f"Vega does not start: {error}") from None
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise VegaError(
            f"Vega does not run on this machine (exit code {done.returncode}): "
            f"{told[-1] if told else 'no message'}"
        )
    return done.stdout.decode("utf-8")
