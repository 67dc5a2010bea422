"""A checkpoint from page-locked memory has the bytes of one that training waits for."""

import json
import threading
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import digests_of_all_files
from tests.helpers.runs import read_log

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("cuda_graphs", ["always", "never"])
def test_steps_that_are_taken_during_the_write_change_no_byte_of_it(
    tmp_path: Path, flags, train_here, monkeypatch, cuda_graphs
):
    from flame_accel.checkpoint import saver
    from flame_accel.observe import MetricLogger

    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = tmp_path / "model.json"
    fields = {"model_type": "gla", "num_hidden_layers": 2, "vocab_size": 258}
    config.write_text(json.dumps(fields | {"num_heads": 4, "hidden_size": 1024}))
    recorded = {step: threading.Event() for step in range(1, 9)}
    log_record, write = MetricLogger.log_and_write_record, saver.write_snapshot

    def log_and_notify(logger: MetricLogger, record: dict[str, float], **options: int) -> None:
        log_record(logger, record, **options)
        recorded[int(record["step"])].set()

    def write_later(snapshot, *arguments, **options):
        if threading.current_thread() is not threading.main_thread():
            # graphs of other numbers of documents are captured meanwhile
            assert recorded[snapshot.step + 3].wait(100)
        return write(snapshot, *arguments, **options)

    monkeypatch.setattr(MetricLogger, "log_and_write_record", log_and_notify)
    monkeypatch.setattr(saver, "write_snapshot", write_later)
    digests = {}
    for mode in ("auto", "disabled"):
        train_here(
            flags(
                **{
                    "job.dump_folder": tmp_path / mode,
                    "model.config": config,
                    "model.tune_kernels": "never",
                    "training.dataset": "python-stdlib",
                    "training.seq_len": 2048,
                    "training.varlen": True,
                    "training.cuda_graphs": cuda_graphs,
                    "checkpoint.async_mode": mode,
                    "evaluation.sample_tokens": 0,
                }
            )
        )
        digests[mode] = digests_of_all_files(tmp_path / mode / "checkpoint/step-4")
    assert "page-locked" in read_log(tmp_path / "auto")
    assert digests["auto"] == digests["disabled"]
