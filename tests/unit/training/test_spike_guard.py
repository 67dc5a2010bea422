"""The guard against spikes: what it skips, what it remembers, and that ranks agree about both."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel.config import TrainingConfig, UserError
from flame_accel.training.spike_guard import SpikeGuard, check_spike_guard_support
from tests.helpers.runs import (
    ROOT,
    WITHOUT_SAMPLE,
    launch,
    model_digests,
    read_log,
    read_losses,
)

ONE_PROCESS: Any = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, process_index=0, parallelism_config=None
)


def decide(guard: SpikeGuard, loss: float, norm: float = 1.0, *, non_finite: bool = False) -> bool:
    flag = torch.tensor(float(non_finite))
    decision = guard.decide_and_remember(torch.tensor(loss * 10), 10, torch.tensor(norm), flag)
    return bool(decision.skipped)


def build_with_history(window: int = 8) -> SpikeGuard:
    guard = SpikeGuard(ONE_PROCESS, sigma=4.0, window=window)
    assert not any(decide(guard, 3.0 + 0.1 * (i % 2), 1.0 + 0.1 * (i % 2)) for i in range(window))
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "skipped"),
    [(3.0, 1.0, False), (3.2, 1.2, False), (3.3, 1.0, True), (3.0, 1.3, True), (0.0, 0.0, False)],
)
def test_a_value_that_is_sigma_deviations_above_the_mean_is_a_spike(loss, norm, skipped):
    # means 3.05 and 1.05, standard deviations 0.05
    assert decide(build_with_history(), loss, norm) is skipped


def test_a_spike_does_not_become_the_measure_of_others():
    guard = build_with_history()
    before = guard.accepted_values()
    for _ in range(20):
        assert decide(guard, 1000.0)
    assert guard.accepted_values() == before
    assert not decide(guard, 3.1)
    assert guard.accepted_values()[-1] == pytest.approx([3.1, 1.0])


@pytest.mark.covers_option("training.spike_window")
def test_nothing_is_a_spike_before_half_a_window_is_known():
    # training.spike_window
    guard = SpikeGuard(ONE_PROCESS, sigma=4.0, window=8)
    for loss in (1.0, 100.0, 10_000.0, 1.0):
        assert not decide(guard, loss)
    assert decide(guard, 1e9)


def test_what_is_not_finite_is_never_remembered():
    guard = build_with_history()
    before = guard.accepted_values()
    assert decide(guard, 3.0, float("nan"), non_finite=True)
    # training.skip_nan_inf is off
    assert not decide(guard, 3.0, float("nan"))
    assert guard.accepted_values() == before


def test_a_resumed_guard_has_the_same_bits():
    guard = build_with_history()
    resumed = SpikeGuard(ONE_PROCESS, sigma=4.0, window=8, accepted=guard.accepted_values())
    assert resumed.accepted_values() == guard.accepted_values()
    assert resumed._values.equal(guard._values)
    shorter = SpikeGuard(ONE_PROCESS, sigma=4.0, window=4, accepted=guard.accepted_values())
    assert shorter.accepted_values() == guard.accepted_values()[-4:]


def test_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flame_accel.training.spike_guard.is_deepspeed", lambda _: True)
    check_spike_guard_support(ONE_PROCESS, TrainingConfig())
    with pytest.raises(UserError, match="DeepSpeed"):
        check_spike_guard_support(ONE_PROCESS, TrainingConfig(skip_spike_sigma=6.0))
    with pytest.raises(UserError, match="max_rewinds"):
        check_spike_guard_support(ONE_PROCESS, TrainingConfig(max_rewinds=1))


@pytest.mark.distributed
def test_ranks_agree_though_their_values_differ():
    printed = launch(
        ["spikes"], config="ddp", processes=2, script=ROOT / "tests/helpers/rank_programs.py"
    )
    decisions = [line.partition(": ")[2] for line in printed.splitlines() if "guard" in line]
    assert len(decisions) == 2 and decisions[0] == decisions[1]
    assert "[0, 0, 0, 0, 1, 0]" in decisions[0]


GUARDED = {
    **WITHOUT_SAMPLE,
    "training.steps": 12,
    "training.skip_spike_sigma": 30,
    "training.spike_window": 8,
    "metrics.log_freq": 4,
}


@pytest.fixture
def spoil_step(monkeypatch: pytest.MonkeyPatch):
    """`spoil_step(n)`: the gradient of the n-th step of each start is a thousand times as large.

    Returns a list that gets, for each step, whether the weights stayed as they were.
    """
    from flame_accel import train

    train_step = train.train_step

    def spoil(number: int) -> list[bool]:
        unchanged: list[bool] = []

        def step(accelerator, model, *arguments, **options):
            before = [p.detach().clone() for p in model.parameters()]
            hooks = []
            if len(unchanged) + 1 == number:
                hooks = [p.register_hook(lambda grad: grad * 1000) for p in model.parameters()]
            result = train_step(accelerator, model, *arguments, **options)
            for hook in hooks:
                hook.remove()
            pairs = zip(before, model.parameters(), strict=True)
            unchanged.append(all(torch.equal(old, new) for old, new in pairs))
            return result

        monkeypatch.setattr(train, "train_step", step)
        return unchanged

    return spoil


@pytest.mark.covers_option("training.skip_spike_sigma")
def test_a_run_skips_a_spike_names_its_batch_and_resumes_to_the_same_bits(
    train_here, flags, tmp_path, spoil_step
):
    run = tmp_path / "run"
    unchanged = spoil_step(10)
    train_here(flags(**GUARDED))
    assert unchanged == [number == 10 for number in range(1, 13)]
    log = read_log(run)
    assert "step 10: its update is skipped: its gradient norm" in log
    assert "30 standard deviations over the mean" in log
    skipped, digests = (run / "skipped.jsonl").read_text(), model_digests(run / "hf")
    loss = read_losses(run)[12]
    # again from step 8, so that the second step is the spike
    unchanged = spoil_step(2)
    train_here(flags(**GUARDED, **{"checkpoint.load_step": 8}))
    assert unchanged == [False, True, False, False]
    assert (run / "skipped.jsonl").read_text() == skipped
    assert read_losses(run)[12] == loss
    assert model_digests(run / "hf") == digests
