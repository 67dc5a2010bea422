"""A pytest plugin that runs fla's own tests on a CPU through our kernels; `__main__` runs it.

It is loaded before fla's conftest. Which failures are expected, which sizes are smaller here and
which modules cannot be imported stands in `expected.toml`.
"""

import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flame_accel import kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPECTED = Path(__file__).with_name("expected.toml")
SECONDS_PER_TEST = float(os.environ.get("FLA_TESTS_SECONDS", "900"))
FULL_SIZE = bool(os.environ.get("FLA_TESTS_FULL_SIZE"))
CPU = {
    "device": "cpu",
    "device_name": "cpu",
    "device_platform": "cpu",
    "device_torch_lib": SimpleNamespace(
        **vars(torch.cpu), manual_seed=torch.manual_seed, empty_cache=lambda: None
    ),
}
"""What fla's tests and modules import from `fla.utils`; fla takes a machine without Triton's
drivers for one with CUDA."""


def read_expected() -> dict[str, Any]:
    """The tables of `expected.toml`."""
    return tomllib.loads(EXPECTED.read_text(encoding="utf-8"))


def matches(pattern: str, test: str) -> bool:
    """Whether a test's id is one of a pattern's, in which * is any text."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), test) is not None


def pytest_configure(config: pytest.Config) -> None:
    kernels.install("torch")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fla":
            for attribute, value in CPU.items():
                if attribute in vars(module):
                    setattr(module, attribute, value)
    torch.cuda.synchronize = lambda device=None: None
    F.cross_entropy = _sum_losses_in_fp32(F.cross_entropy)
    _offer_flash_attn()
    for moved, path in read_expected()["moved"].items():
        owner, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(owner), name) if path else _raise_gone
        owner, _, name = moved.rpartition(".")
        setattr(importlib.import_module(owner), name, value)


def _offer_flash_attn() -> None:
    """Makes tests and references that need flash-attn run: fla's layers have ours in its place."""
    from fla.layers import attn
    from fla.utils import find_spec_cached

    if importlib.util.find_spec("flash_attn") is not None:
        return
    package: Any = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    sys.modules["flash_attn"] = package
    find_spec_cached.cache_clear()
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        ours = getattr(attn, name)
        for module in (package, importlib.import_module("fla.ops.nsa.naive")):
            setattr(module, name, ours)


def _sum_losses_in_fp32(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """PyTorch's loss, the tests' reference, with the sums of a GPU: a CPU's are in fp16 and off."""

    def compute_loss_in_fp32(input: Tensor, *args: Any, **options: Any) -> Tensor:
        return cross_entropy(input.float(), *args, **options).to(input.dtype)

    return compute_loss_in_fp32


def _raise_gone(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("the installed fla has no such function")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    path = collection_path.relative_to(config.rootpath).as_posix()
    return True if path in read_expected()["modules"] else None


def pytest_collection_modifyitems(items: list[Any]) -> None:
    expected = read_expected()
    for item in items:
        for row in expected["failures"]:
            if any(matches(pattern, item.nodeid) for pattern in row["tests"]):
                run = row.get("run", True)
                item.add_marker(pytest.mark.xfail(reason=row["reason"], strict=run, run=run))
        sizes: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        rows = expected["largest"].items()
        largest = next((row for pattern, row in rows if matches(pattern, item.nodeid)), {})
        for name, limit in largest.items():
            size = sizes.get(name)
            if isinstance(size, int) and size > limit + 64 and not FULL_SIZE:
                sizes[name] = limit + size % 64


@pytest.fixture(autouse=True)
def generation_keeps_no_graph(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models generate without gradients, which their tests would keep of every token."""
    if "test_generation" in request.node.name:
        with torch.no_grad():
            yield
    else:
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Ends a test that takes too long."""

    def raise_timeout(*_: Any) -> NoReturn:
        raise TimeoutError(f"longer than {SECONDS_PER_TEST:.0f} s")

    signal.signal(signal.SIGALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_TEST)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Appends a line for each test to the file of results: outcome, seconds, id, message."""
    if report.when != "call" and (report.when == "teardown" or report.passed):
        return
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        left_out = report.wasxfail.startswith("[NOTRUN]")
        outcome = "left out" if left_out else "expected" if report.skipped else "mended"
    elif report.failed and "[XPASS(strict)]" in str(report.longrepr):
        outcome = "mended"
    crash = getattr(report.longrepr, "reprcrash", None)
    if outcome in ("expected", "left out"):
        text = report.wasxfail
    elif crash is not None:
        text = f"{crash.message} ({crash.path}:{crash.lineno})"
    else:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    line = f"{outcome}\t{report.duration:.1f}\t{report.nodeid}\t{' '.join(text.split())[:500]}\n"
    with open(os.environ["FLA_TESTS_RESULTS"], "a", encoding="utf-8") as file:
        file.write(line)
