"""Records in metrics.jsonl, TensorBoard and W&B: which steps, which ranks, valid JSON."""

import time
from pathlib import Path

import pytest

from flame_accel.config import ConfigError, parse
from flame_accel.observe.metric_logger import flatten_options_without_secrets
from tests.helpers.runs import launch, read_records


def test_trackers_get_flat_plain_options():
    options = {"training": {"steps": 3, "dataset": None}, "model": {"custom": ("a", "b")}}
    assert flatten_options_without_secrets(options) == {
        "training.steps": 3,
        "training.dataset": "None",
        "model.custom": "('a', 'b')",
    }


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """The values that lie in a folder, not below it: name -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: {event.step: event.value for event in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.covers_option("metrics.log_freq")
def test_records_are_of_the_first_every_n_th_and_the_last_step(train_here, flags, tmp_path):
    train_here(
        flags(
            **{
                "metrics.log_freq": 3,
                "metrics.enable_tensorboard": True,
                "metrics.save_tb_folder": "curves/board",
            }
        )
    )
    run = tmp_path / "run"
    records = {record["step"]: record["train/loss"] for record in read_records(run)}
    assert list(records) == [1, 3, 6, 8]
    assert curves(run / "curves/board/flame_accel")["train/loss"] == pytest.approx(records)
    assert not (run / "tb").exists()
    assert not list((run / "curves/board").glob("rank-*"))


@pytest.mark.covers_option("metrics.save_tb_folder", "metrics.rank_0_only")
@pytest.mark.distributed
def test_every_rank_writes_its_own_values_when_asked(flags, tmp_path):
    launch(
        flags(
            **{
                "metrics.enable_tensorboard": True,
                "metrics.rank_0_only": False,
                "metrics.log_freq": 2,
                "training.steps": 4,
                "evaluation.sample_tokens": 0,
                "checkpoint.enable_checkpoint": False,
            }
        ),
        config="ddp",
        processes=2,
    )
    run = tmp_path / "run"
    records = {record["step"]: record for record in read_records(run)}
    ranks = [curves(run / f"tb/rank-{rank}") for rank in (0, 1)]
    assert ranks[0]["train/loss"] != ranks[1]["train/loss"]
    for own in ranks:
        assert set(own) == {
            *("train/loss", "train/max_loss"),
            *("time/step_seconds", "time/data_seconds", "memory/peak_gib"),
        }
        assert all(list(values) == [1, 2, 4] for values in own.values())
    for step, record in records.items():
        # both ranks have as many targets
        own = [rank["train/loss"][step] for rank in ranks]
        assert sum(own) / 2 == pytest.approx(record["train/loss"], rel=1e-6)
        largest = max(rank["train/max_loss"][step] for rank in ranks)
        assert largest == pytest.approx(record["train/max_loss"], rel=1e-6)
    common = curves(run / "tb/flame_accel")["train/loss"]
    assert common == pytest.approx({step: r["train/loss"] for step, r in records.items()})


def test_values_of_every_rank_need_tensorboard():
    with pytest.raises(ConfigError, match="TensorBoard is off"):
        parse(["--model.config=a/b", "--training.dataset=a/b", "--metrics.no_rank_0_only"])


@pytest.mark.covers_option("metrics.enable_tensorboard", "metrics.enable_wandb")
def test_trackers_write_offline(train_here, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    on = {"metrics.enable_tensorboard": True, "metrics.enable_wandb": True}
    train_here(flags(**on))
    run = tmp_path / "run"
    (offline,) = (run / "wandb").glob("offline-run-*/*.wandb")
    # its own process writes it, and may do so after the run has ended
    deadline = time.monotonic() + 60
    while b"train/loss" not in offline.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # the tracker writes hyper-parameters into a folder of their own, below
    events = min(
        (path.parent for path in (run / "tb").rglob("events.*")), key=lambda p: len(p.parts)
    )
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    values = [event.value for event in accumulator.Scalars("train/loss")]
    assert values == pytest.approx([record["train/loss"] for record in read_records(run)])
