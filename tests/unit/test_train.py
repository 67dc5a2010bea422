"""The story of a run: what it leaves behind, and options that act in the loop itself."""

import contextlib
import importlib.metadata
import json

import pytest

from flame_accel.config import load_run_file, parse
from tests.helpers.runs import ROOT, SHORT_RUN, read_log, read_records

SAVE_KEYS = {"checkpoint/stall_seconds", "checkpoint/write_seconds"}
RECORD_KEYS = {
    "step",
    "tokens",
    "epoch",
    "train/loss",
    "train/max_loss",
    "optimizer/lr",
    "optimizer/grad_norm",
    "optimizer/skipped_steps",
    "throughput/tokens_per_second",
    "throughput/tokens_per_second_per_device",
    "throughput/tflops_per_device",
    "time/step_seconds",
    "time/data_seconds",
    "memory/peak_gib",
}


@pytest.mark.covers_option("evaluation.dataset", "evaluation.interval")
def test_a_run_leaves_what_the_contract_says(train_here, flags, tmp_path, corpus):
    argv = flags(**{"evaluation.dataset": corpus, "evaluation.interval": 4})
    train_here(argv)
    run = tmp_path / "run"
    records = read_records(run)
    assert [record["step"] for record in records] == list(range(1, 9))
    # this CPU's peak is not known, so no share of it is claimed
    evaluated = {"eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/accuracy"}
    for record in records:
        # the second one is there once the checkpoint is
        saved = (
            {"checkpoint/stall_seconds", "checkpoint/write_seconds"}
            if record["step"] > 4
            else set()
        )
        expected = RECORD_KEYS | (evaluated if record["step"] in (4, 8) else set())
        assert set(record) - saved == expected
    assert "checkpoint/stall_seconds" in records[4]
    assert records[-1]["tokens"] == 8 * 4 * 64
    assert records[-1]["train/loss"] < records[0]["train/loss"]
    assert load_run_file(run / "config.toml") == parse(argv)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert "step 8/8" in (run / "log.txt").read_text()
    assert sorted(p.name for p in (run / "checkpoint").iterdir()) == ["step-4", "step-8"]
    page = (run / "report.html").read_text()
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Peak memory"):
        assert f"<h3>{title}</h3>" in page


@pytest.mark.covers_option("job.print_args")
@pytest.mark.parametrize("asked", [True, False])
def test_print_args_shows_all_options(train_here, flags, tmp_path, asked):
    train_here(flags(**SHORT_RUN, **{"job.print_args": asked}))
    assert ("[optimizer]" in read_log(tmp_path / "run")) == asked
    assert ("beta2 = 0.95" in read_log(tmp_path / "run")) == asked


def test_others_wait_for_long_while_a_start_hashes_downloads_and_copies(
    train_here, flags, monkeypatch, tmp_path
):
    from flame_accel import train

    extended, seen = [], []

    @contextlib.contextmanager
    def extended_timeout(accelerator, seconds_afterwards):
        extended.append(seconds_afterwards)
        yield
        extended.pop()

    def note(name, function):
        def call(*args, **kwargs):
            seen.append((name, extended[-1:]))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(train.parallel, "extended_timeout", extended_timeout)
    for name in ("find_or_download_starting_point", "restore_starting_point", "build_components"):
        monkeypatch.setattr(train, name, note(name, getattr(train, name)))
    train_here(flags(**SHORT_RUN, **{"comm.init_timeout_seconds": 77}))
    assert seen == [
        ("find_or_download_starting_point", [77]),
        ("build_components", [77]),
        ("restore_starting_point", [77]),
    ]


def test_the_story_is_read_in_one_sitting():
    story = ROOT / "flame_accel/train.py"
    assert len(story.read_text(encoding="utf-8").splitlines()) <= 350
