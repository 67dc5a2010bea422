"""Packages with kernels are found, loaded, switched off, named in the log and kept with the run."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flame_accel import kernels
from flame_accel.kernels import configured
from flame_accel.kernels.packages import (
    HOPPER,
    KernelPackage,
    active_kernel_packages,
    found,
    install_package_kernels,
)
from flame_accel.observe.starts import list_changed_kernel_packages


class FakeModule(ModuleType):
    """Stands in for our module of a package."""

    loads = True
    calls: list[str]

    def activate(self) -> None:
        if not self.loads:
            raise OSError("libcuda.so.1: cannot open shared object file")
        self.calls.append("activate")

    def deactivate(self) -> None:
        self.calls.append("deactivate")


@pytest.fixture
def package(monkeypatch) -> KernelPackage:
    """An installed package, on a Hopper GPU."""
    module = FakeModule("fake_kernels")
    module.calls = []
    monkeypatch.setitem(sys.modules, "fake_kernels", module)
    monkeypatch.setattr(found, "_gpu_capability", lambda: HOPPER)
    monkeypatch.setattr(found, "_installed_version", lambda name: "4.1")
    return KernelPackage("fake-kernels", "flash_attn_4", "softmax attention", "fake_kernels")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    kernels.uninstall()
    kernels.install()


def calls_of(package: KernelPackage) -> list[str]:
    return sys.modules[package.module].calls


def test_a_package_serves_until_uninstall(package):
    assert install_package_kernels([package]) == {"fake-kernels": "4.1"}
    assert active_kernel_packages() == {"fake-kernels": "4.1"}
    kernels.uninstall()
    assert calls_of(package) == ["activate", "deactivate"]
    assert active_kernel_packages() == {}


def test_a_package_that_a_later_run_of_the_process_leaves_out_serves_no_more(package):
    install_package_kernels([package])
    assert install_package_kernels([]) == {} == active_kernel_packages()
    assert calls_of(package) == ["activate", "deactivate"]


def test_a_package_that_does_not_load_is_told_and_left_out(package, caplog):
    sys.modules[package.module].loads = False  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="flame_accel"):
        assert install_package_kernels([package]) == {}
    assert "fake-kernels is installed and does not load (OSError: libcuda.so.1" in caplog.text
    assert "softmax attention runs without it" in caplog.text


@pytest.mark.parametrize("capability", [None, (8, 0), (10, 0)])
def test_other_gpus_are_left_alone(package, monkeypatch, capability):
    monkeypatch.setattr(found, "_gpu_capability", lambda: capability)
    assert install_package_kernels([package]) == {}
    assert calls_of(package) == []


def test_a_missing_package_is_no_news(package, monkeypatch, caplog):
    monkeypatch.undo()
    monkeypatch.setattr(found, "_gpu_capability", lambda: HOPPER)
    assert install_package_kernels([package]) == {}
    assert not caplog.records


@pytest.mark.covers_option("model.flash_attn_4", "model.flash_qla")
@pytest.mark.parametrize(
    ("option", "active", "allowed"),
    [
        ("flash_attn_4", "triton", True),
        ("flash_attn_4", "triton", False),
        ("flash_qla", "triton", True),
        ("flash_attn_4", "torch", True),
    ],
)
def test_a_run_names_and_records_what_serves(
    package, monkeypatch, train_here, flags, tmp_path, option, active, allowed
):
    run_without_triton_functions(monkeypatch, active)
    monkeypatch.setattr(configured, "KERNEL_PACKAGES", [package._replace(option=option)])
    train_here(
        flags(
            **{
                f"model.{option}": allowed,
                "model.fused_kernels": False,
                "training.steps": 2,
                "evaluation.sample_tokens": 0,
            }
        )
    )
    serves = allowed and active == "triton"
    log = (tmp_path / "run/log.txt").read_text()
    assert ("; softmax attention by fake-kernels 4.1" in log) == serves
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    expected = {"fake-kernels": "4.1"} if serves else {}
    assert environment["kernel_packages"] == expected
    assert environment["starts"][-1]["kernel_packages"] == expected


def run_without_triton_functions(monkeypatch: pytest.MonkeyPatch, active: str) -> None:
    """A run on the CPU that takes itself for one with these kernels."""
    install = configured.install

    def install_torch(kind: Any) -> str:
        install("torch")
        return active

    monkeypatch.setattr(configured, "install", install_torch)
    monkeypatch.setattr(configured, "choose_operator_recompute", lambda mode: None)


def test_a_restart_with_other_kernels_is_told(package, monkeypatch, train_here, flags, tmp_path):
    run_without_triton_functions(monkeypatch, "triton")
    monkeypatch.setattr(configured, "KERNEL_PACKAGES", [package])
    options = {"model.fused_kernels": False, "evaluation.sample_tokens": 0}
    train_here(flags(**options, **{"training.steps": 2}))
    train_here(flags(**options, **{"training.steps": 4}))
    log = tmp_path / "run/log.txt"
    assert "kernels: fake-kernels" not in log.read_text()
    monkeypatch.setattr(found, "_gpu_capability", lambda: None)
    kernels.uninstall()
    train_here(flags(**options, **{"training.steps": 6}))
    assert "changed since the last start: kernels: fake-kernels: 4.1 -> none" in log.read_text()


def write_starts(folder: Path, *starts: dict[str, Any]) -> None:
    whole = [{"step": 0, "changed_options": []} | start for start in starts]
    (folder / "environment.json").write_text(json.dumps({"starts": whole}))


def test_kernels_are_compared_with_those_of_the_last_start(tmp_path):
    now = {"flash-attn-4": "2", "other": "1"}
    assert list_changed_kernel_packages(tmp_path, now) == []
    write_starts(tmp_path, {"kernel_packages": now}, {"kernel_packages": {"flash-attn-4": "1"}})
    assert list_changed_kernel_packages(tmp_path, now) == [
        "flash-attn-4: 1 -> 2",
        "other: none -> 1",
    ]
    # a start of an earlier version had no such packages
    write_starts(tmp_path, {})
    assert list_changed_kernel_packages(tmp_path, {"other": "1"}) == ["other: none -> 1"]
