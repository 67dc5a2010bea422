"""A run that cannot train is refused before anything is built."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from flame_accel.config import UserError, parse
from flame_accel.diagnosis import trainability
from flame_accel.diagnosis.machine import Folder
from flame_accel.diagnosis.run_checks import check_run_support_and_log_warnings
from flame_accel.models.catalogue import tiny_config
from flame_accel.observe import get_logger
from tests.helpers.machines import GOOD, SICK
from tests.helpers.optimizers import STEP_IN_BACKWARD, fake_accelerator


@pytest.fixture
def no_build(monkeypatch):
    """Fails the test if a run gets as far as to build anything."""
    from flame_accel import train

    monkeypatch.setattr(train, "build_components", lambda *arguments: pytest.fail("too late"))


@pytest.mark.usefixtures("no_build")
def test_a_machine_that_cannot_train_is_refused(train_here, flags, monkeypatch):
    monkeypatch.setattr(
        trainability, "collect_machine_facts", lambda *arguments: SICK["no C compiler"]
    )
    with pytest.raises(UserError, match="no C compiler") as caught:
        train_here(flags())
    assert caught.value.remedy and "gcc" in caught.value.remedy


def test_what_does_not_keep_a_machine_from_training_is_logged_before_the_model_is_built(
    train_here, flags, monkeypatch
):
    from flame_accel import train

    logged: list[str] = []

    def build(*arguments: object) -> None:
        assert any("This machine: less than 1 GiB is free" in line for line in logged)
        assert any("the warm-up takes 5 of 8 steps" in line for line in logged)
        raise LookupError("reached")

    almost_full = Folder(purpose="the run", path="exp", free_bytes=2**29, writable=True)
    facts = replace(GOOD, folders=(almost_full,))
    monkeypatch.setattr(trainability, "collect_machine_facts", lambda *arguments: facts)
    for level in ("info", "warning"):
        monkeypatch.setattr(get_logger(), level, lambda text, *values: logged.append(text % values))
    monkeypatch.setattr(train, "build_components", build)
    with pytest.raises(LookupError, match="reached"):
        train_here(flags(**{"training.warmup_steps": 5}))


@pytest.mark.usefixtures("no_build")
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("training.compile", True),
        ("training.fsdp_reshard_after_forward", "always"),
        ("float8.recipe_name", "tensorwise"),
        ("profiling.enable_memory_snapshot", True),
    ],
)
def test_options_that_the_device_does_not_support_are_refused(
    train_here, flags, monkeypatch, option, value
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError) as caught:
        train_here(flags(**{option: value}))
    assert caught.value.where == option


DEEPSPEED = fake_accelerator(DistributedType.DEEPSPEED, num_processes=2)
DDP = fake_accelerator(DistributedType.MULTI_GPU, num_processes=2)
TENSOR_PARALLEL = fake_accelerator(
    DistributedType.MULTI_GPU, num_processes=3, parallelism_config=SimpleNamespace(tp_size=3)
)


@pytest.mark.parametrize(
    ("accelerator", "changes", "where"),
    [
        (DEEPSPEED, {"optimizer.name": "Muon"}, "optimizer.name"),
        (DDP, STEP_IN_BACKWARD, "optimizer.early_step_in_backward"),
        (TENSOR_PARALLEL, {}, "training.tensor_parallel_degree"),
    ],
)
def test_options_that_the_engine_does_not_support_are_refused(
    flags, accelerator: Any, changes: dict[str, Any], where: str
):
    config = parse(flags(**changes))
    with pytest.raises(UserError) as caught:
        check_run_support_and_log_warnings(config, accelerator, tiny_config("gla"), "torch")
    assert caught.value.where == where
