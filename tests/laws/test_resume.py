"""Laws of whole runs on one device: run folder, resume, exported model, guard."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flame_accel.config import UserError, load_file, parse
from tests.helpers.runs import ROOT, kill_after, launch, launch_environment, read_records

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


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def losses(run_folder: Path) -> dict[int, float]:
    return {record["step"]: record["train/loss"] for record in read_records(run_folder)}


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
        assert set(record) == RECORD_KEYS | (evaluated if record["step"] in (4, 8) else set())
    assert records[-1]["tokens"] == 8 * 4 * 64
    assert records[-1]["train/loss"] < records[0]["train/loss"]
    assert load_file(run / "config.toml") == parse(argv)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert "step 8/8" in (run / "log.txt").read_text()
    assert sorted(p.name for p in (run / "checkpoint").iterdir()) == ["step-4", "step-8"]
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "<script" not in page and "http" not in page


@pytest.mark.covers_option("job.dump_folder")
def test_a_crash_and_a_second_start_change_no_bit(train_here, flags, tmp_path, monkeypatch):
    whole = flags(**{"job.dump_folder": tmp_path / "whole"})
    broken = flags(**{"job.dump_folder": tmp_path / "broken"})
    # a window of several steps is open at the checkpoint: its sums have to survive
    for argv in (whole, broken):
        argv.append("--metrics.log_freq=3")
    train_here(whole)

    from flame_accel.observe import MetricLogger

    write = MetricLogger.write

    def crash_at_6(self: MetricLogger, record: dict[str, float], *, steps: int) -> None:
        if record["step"] == 6:
            raise KeyboardInterrupt
        write(self, record, steps=steps)

    monkeypatch.setattr(MetricLogger, "write", crash_at_6)
    with pytest.raises(KeyboardInterrupt):
        train_here(broken)
    monkeypatch.undo()
    train_here(broken)
    assert "continuing after step 4" in (tmp_path / "broken" / "log.txt").read_text()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert digests(tmp_path / "broken/hf") == digests(tmp_path / "whole/hf")


def test_a_killed_run_started_again_equals_one_left_alone(flags, tmp_path, corpus):
    options = {"training.steps": 16, "training.num_workers": 1, "evaluation.sample_tokens": 0}
    alone = flags(**options, **{"job.dump_folder": tmp_path / "alone"})
    killed = flags(**options, **{"job.dump_folder": tmp_path / "killed"})
    launch(alone, config="cpu", processes=1)
    kill_after(killed, tmp_path / "killed", step=6)
    assert not (tmp_path / "killed/hf").exists()
    launch(killed, config="cpu", processes=1)
    assert losses(tmp_path / "killed") == losses(tmp_path / "alone")
    assert digests(tmp_path / "killed/hf") == digests(tmp_path / "alone/hf")


def test_a_finished_run_started_again_exports_the_same(train_here, flags, tmp_path):
    train_here(flags())
    before = digests(tmp_path / "run/hf"), read_records(tmp_path / "run")
    train_here(flags())
    assert (digests(tmp_path / "run/hf"), read_records(tmp_path / "run")) == before


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(train_here, flags, tmp_path):
    train_here(flags())
    expected = digests(tmp_path / "run/hf")
    weights = tmp_path / "run/checkpoint/step-8/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    train_here(flags())
    names = sorted(path.name for path in (tmp_path / "run/checkpoint").iterdir())
    assert names == ["step-4", "step-8", "step-8.damaged-0"]
    assert "continuing after step 4" in (tmp_path / "run/log.txt").read_text()
    assert digests(tmp_path / "run/hf") == expected


@pytest.mark.covers_option("checkpoint.interval", "checkpoint.keep_latest_k")
def test_only_the_newest_checkpoints_are_kept(train_here, flags, tmp_path):
    train_here(flags(**{"checkpoint.interval": 2, "checkpoint.keep_latest_k": 2}))
    names = sorted(path.name for path in (tmp_path / "run/checkpoint").iterdir())
    assert names == ["step-6", "step-8"]


@pytest.mark.covers_option("checkpoint.load_step")
def test_loading_a_step_that_is_not_there_is_refused(train_here, flags):
    train_here(flags())
    with pytest.raises(UserError, match="step 5") as raised:
        train_here(flags(**{"checkpoint.load_step": 5}))
    assert "4, 8" in str(raised.value)


@pytest.mark.covers_option("model.config")
def test_another_model_does_not_resume(train_here, flags, tmp_path, tiny_model):
    train_here(flags())
    other = json.loads(tiny_model.read_text()) | {"hidden_size": 64}
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match="another model or optimizer"):
        train_here(flags(**{"model.config": path}))


def test_another_stream_does_not_resume(train_here, flags):
    train_here(flags())
    with pytest.raises(UserError, match=r"training\.seed"):
        train_here(flags(**{"training.seed": 7}))


LOAD_ELSEWHERE = """
import sys, torch
import flame_accel
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = torch.load(sys.argv[2])["ids"]
torch.save({"logits": model(ids, use_cache=False).logits, "text": tokenizer.decode(
    model.generate(ids[:1, :5], max_new_tokens=12, do_sample=False)[0])}, sys.argv[2])
"""


def test_the_export_loads_in_a_fresh_process_with_the_trained_logits(
    train_here, flags, tmp_path, monkeypatch
):
    from flame_accel import train

    kept = {}
    export_model = train.export_model

    def keep_logits(accelerator, model, tokenizer, *arguments, **options):
        kept["ids"] = torch.arange(40).reshape(2, 20)
        kept["logits"] = model.eval()(kept["ids"], use_cache=False).logits.detach()
        export_model(accelerator, model, tokenizer, *arguments, **options)

    monkeypatch.setattr(train, "export_model", keep_logits)
    train_here(flags())
    for folder in ("hf", "checkpoint/step-8"):
        exchange = tmp_path / "exchange.pt"
        torch.save(kept, exchange)
        subprocess.run(
            [sys.executable, "-c", LOAD_ELSEWHERE, str(tmp_path / "run" / folder), str(exchange)],
            env=launch_environment(),
            check=True,
        )
        loaded = torch.load(exchange)
        assert torch.equal(loaded["logits"], kept["logits"]), folder
        assert isinstance(loaded["text"], str)


@pytest.mark.covers_option("checkpoint.export_dtype")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_config_names_the_dtype_that_is_stored(train_here, flags, tmp_path, dtype):
    from safetensors.torch import load_file as load_tensors
    from transformers import AutoModelForCausalLM

    train_here(flags(**{"checkpoint.export_dtype": dtype, "training.steps": 4}))
    folder = tmp_path / "run/hf"
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    stored = load_tensors(folder / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {getattr(torch, dtype)}
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == getattr(torch, dtype)


def test_the_export_command_gives_what_training_gave(train_here, flags, tmp_path):
    train_here(flags())
    run = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-m", "flame_accel", "export", str(run), str(tmp_path / "again")],
        env=launch_environment(),
        check=True,
    )
    ours, theirs = digests(tmp_path / "again"), digests(run / "hf")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert ours[name] == theirs[name], name


def test_tied_weights_survive_a_restart_and_the_export(train_here, flags, tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tied.json"
    path.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"tie_word_embeddings": True}))
    train_here(flags(**{"model.config": path}))
    expected = digests(tmp_path / "run/hf")
    import shutil

    shutil.rmtree(tmp_path / "run/checkpoint/step-8")
    train_here(flags(**{"model.config": path}))
    assert digests(tmp_path / "run/hf") == expected
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/hf")
    assert model.lm_head.weight is model.model.embeddings.weight


def test_a_non_finite_gradient_leaves_the_weights_alone(train_here, flags, monkeypatch):
    from flame_accel import train

    seen = []
    train_step = train.train_step

    def spoil(accelerator, model, optimizer, micro_batches, **options):
        before = [p.detach().clone() for p in model.parameters()]
        hook = None
        if len(seen) in (2, 3):
            hook = model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
        result = train_step(accelerator, model, optimizer, micro_batches, **options)
        if hook is not None:
            hook.remove()
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        seen.append((result.skipped.item(), all(same), any(same)))
        return result

    monkeypatch.setattr(train, "train_step", spoil)
    train_here(flags())
    for index, (skipped, all_same, any_same) in enumerate(seen):
        if index in (2, 3):
            assert (skipped, all_same) == (1.0, True)
        else:
            assert (skipped, any_same) == (0.0, False)


@pytest.mark.covers_option("training.max_consecutive_skips")
def test_a_run_whose_updates_are_all_skipped_stops(train_here, flags, monkeypatch, tmp_path):
    from flame_accel import train

    compute = train.train_step

    def spoil(accelerator, model, optimizer, micro_batches, **options):
        hook = model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
        result = compute(accelerator, model, optimizer, micro_batches, **options)
        hook.remove()
        return result

    monkeypatch.setattr(train, "train_step", spoil)
    with pytest.raises(UserError, match="not finite"):
        train_here(flags(**{"training.max_consecutive_skips": 3}))
    assert [record["step"] for record in read_records(tmp_path / "run")] == [1, 2, 3]


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


def test_a_log_file_has_one_line_per_record_and_no_control_characters(flags, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags()],
        env=launch_environment(ACCELERATE_USE_CPU="true"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        sum(line.startswith("step ") and "loss" in line for line in done.stdout.splitlines()) == 8
    )
    assert not set("\r\x1b") & set(done.stdout + done.stderr)
    assert "Warning" not in done.stderr, done.stderr


@pytest.mark.covers_option("training.steps")
def test_a_second_start_says_which_options_changed(train_here, flags, tmp_path):
    train_here(flags())
    train_here(flags(**{"training.steps": 10, "optimizer.lr": 1e-4}))
    log = (tmp_path / "run/log.txt").read_text()
    assert "changed since the last start: training.steps: 8 -> 10" in log
    assert "optimizer.lr: 0.0003 -> 0.0001" in log
    assert "job.config_file" not in log
    assert max(losses(tmp_path / "run")) == 10
