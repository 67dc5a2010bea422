"""A run on a GPU that is killed again and again ends with the bits of one left alone."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import ROOT, model_digests, read_losses, read_records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KILLS, STEPS, INTERVAL = 5, 60, 6
PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def start(run_folder: Path, tokenizer: str) -> subprocess.Popen[bytes]:
    """A bf16 run of GLA-340M in a process of its own, with asynchronous saves."""
    options = {
        "job.dump_folder": run_folder,
        "job.description": "killed again and again",
        "model.config": ROOT / "configs/gla_340M.json",
        "model.tokenizer_path": tokenizer,
        "model.tune_kernels": "never",
        "training.dataset": "python-stdlib",
        "training.batch_size": 4,
        "training.seq_len": 4096,
        "training.varlen": True,
        "training.steps": STEPS,
        "training.warmup_steps": 10,
        "metrics.log_freq": 1,
        "checkpoint.interval": INTERVAL,
        "checkpoint.keep_latest_k": 2,
        "evaluation.sample_tokens": 0,
    }
    command = [sys.executable, "-m", "flame_accel.train_process"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "bf16", "PYTHONPATH": PATH}
    environment.pop("ACCELERATE_USE_CPU", None)
    with run_folder.with_suffix(".out").open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def recorded_step(run_folder: Path) -> int:
    return max((record["step"] for record in read_records(run_folder)), default=0)


def kill_in_a_save_or_between(
    run: subprocess.Popen[bytes], run_folder: Path, *, after: int, in_save: bool, delay: float
) -> str:
    """SIGKILL once `after` steps are recorded; says what the run had done by then."""
    while run.poll() is None:
        open_saves = [path.name for path in run_folder.glob("checkpoint/*.tmp*")]
        if recorded_step(run_folder) >= after and (open_saves or not in_save):
            time.sleep(delay)
            run.kill()
            run.wait()
            still_open = [path.name for path in run_folder.glob("checkpoint/*.tmp*")]
            return f"after step {recorded_step(run_folder)}, open saves {still_open}"
        time.sleep(0.002)
    pytest.fail(f"it ended by itself: {run_folder.with_suffix('.out').read_text()[-3000:]}")


def test_five_kills_of_a_bf16_run_change_no_loss_and_no_weight(tmp_path: Path):
    tokenizer = os.environ.get("FLAME_ACCEL_TEST_TOKENIZER", "byte")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # both at once: they do not share a bit, and the GPU has room for two
    uninterrupted = start(whole, tokenizer)
    draw = random.Random(0)
    for number in range(KILLS):
        after = recorded_step(killed) + INTERVAL + draw.randrange(3)
        moment = kill_in_a_save_or_between(
            start(killed, tokenizer),
            killed,
            after=min(after, STEPS - INTERVAL - 3),
            in_save=number % 2 == 0,
            delay=draw.random() * 0.5,
        )
        print(f"kill {number + 1}: {moment}", flush=True)
    assert start(killed, tokenizer).wait() == 0, killed.with_suffix(".out").read_text()[-3000:]
    assert uninterrupted.wait() == 0, whole.with_suffix(".out").read_text()[-3000:]
    losses = read_losses(killed)
    assert len(losses) == STEPS
    assert losses == read_losses(whole)
    assert model_digests(killed / "hf") == model_digests(whole / "hf")
