"""The kernels that options name are installed, and named in the log."""

import pytest

from flame_accel.config import UserError
from tests.helpers.runs import SHORT_RUN, read_log


@pytest.mark.covers_option("model.fused_kernels")
@pytest.mark.parametrize(
    ("active", "fused_kernels"), [("triton", True), ("triton", False), ("torch", True)]
)
def test_model_fused_kernels_replaces_those_of_fla_where_triton_runs(
    monkeypatch, train_here, flags, active, fused_kernels
):
    from flame_accel import train
    from flame_accel.kernels import configured

    asked: list[bool] = []
    monkeypatch.setattr(configured, "install", lambda kind: active)
    monkeypatch.setattr(configured, "install_fused_kernels", lambda: asked.append(True))
    monkeypatch.setattr(train, "check_run_support_and_log_warnings", stop)
    with pytest.raises(StopIteration):
        train_here(flags(**{"model.fused_kernels": fused_kernels}))
    assert bool(asked) == (active == "triton" and fused_kernels)


def stop(*args: object) -> None:
    raise StopIteration


@pytest.mark.covers_option("model.kernels")
def test_a_run_uses_the_named_kernels(train_here, flags, tmp_path):
    train_here(flags(**SHORT_RUN, **{"model.kernels": "torch"}))
    assert "kernels: torch" in read_log(tmp_path / "run")
    # without a device for them, Triton's are refused rather than replaced
    with pytest.raises(UserError, match="Triton has no device"):
        train_here(flags(**SHORT_RUN, **{"model.kernels": "triton"}))
