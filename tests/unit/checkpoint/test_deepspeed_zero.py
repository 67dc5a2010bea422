"""DeepSpeed's ZeRO in runs: its own step, odd sizes, and checkpoints that equal those of DDP.

That its losses and checkpoints are those of all engines is held in `laws/test_engines`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.checkpoints import equal_tensors, read_tensors, read_weights, undo_checkpoint
from tests.helpers.runs import ROOT, launch, read_records

# three heads: two ranks cannot divide the decays
ODD_MODEL = {
    "model_type": "gated_deltanet",
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_heads": 3,
    "head_dim": 12,
    "vocab_size": 258,
}


# freezes a norm, and on rank 1 makes the loss of the fifth micro-batch NaN
PATCHES = """
import os
from fla.models.gated_deltanet import GatedDeltaNetForCausalLM as Model

build, calm, calls = Model.__init__, Model.forward, []

def __init__(self, *arguments, **options):
    build(self, *arguments, **options)
    self.model.norm.weight.requires_grad_(False)

def forward(self, *arguments, num_items_in_batch=None, **options):
    outputs = calm(self, *arguments, num_items_in_batch=num_items_in_batch, **options)
    if self.training:
        calls.append(None)
        if len(calls) == 5 and os.environ["RANK"] == "1":
            outputs.loss = outputs.loss * float("nan")
    return outputs

Model.__init__, Model.forward = __init__, forward
"""


BF16 = f"""
import os, runpy

os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


class Runs:
    """Runs of two ranks with two micro-batches each, made once by launch and precision."""

    def __init__(self, root: Path, corpus: Path) -> None:
        self.root, self.corpus = root, corpus
        (root / "odd.json").write_text(json.dumps(ODD_MODEL))
        (root / "patches.py").write_text(PATCHES)
        (root / "bf16.py").write_text(BF16)
        # tiny weights would stay whole under ZeRO-3, since gathering them is not worth its while
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        (root / "deepspeed.json").write_text(json.dumps({"zero_optimization": zero}))
        (root / "divided.yaml").write_text(
            "distributed_type: DEEPSPEED\nnum_machines: 1\nmain_process_port: 0\nuse_cpu: false\n"
            f"deepspeed_config:\n  deepspeed_config_file: {root / 'deepspeed.json'}\n"
        )

    def launch(self, config: str, folder: Path, processes: int = 2, bf16: bool = False) -> None:
        """Trains, or resumes, in a folder."""
        options = {
            "job.dump_folder": folder,
            "model.config": self.root / "odd.json",
            "model.custom": self.root / "patches.py",
            "model.tokenizer_path": "byte",
            "training.dataset": self.corpus,
            "training.varlen": True,
            "training.context_len": 24,
            "training.seq_len": 64,
            "training.batch_size": 8 // processes,
            "training.gradient_accumulation_steps": 2,
            "training.steps": 5,
            "training.warmup_steps": 1,
            "training.num_workers": 0,
            "metrics.log_freq": 1,
            "checkpoint.interval": 1,
            "checkpoint.keep_latest_k": 0,
            "evaluation.dataset": self.corpus,
            "evaluation.sample_tokens": 0,
        }
        launch(
            [f"--{name}={value}" for name, value in options.items()],
            config=str(self.root / "divided") if config == "divided" else config,
            processes=processes,
            script=self.root / "bf16.py" if bf16 else ROOT / "train.py",
        )

    def folder(self, config: str, bf16: bool = False) -> Path:
        """Where a run is, to its end."""
        folder = self.root / f"{config}-{bf16}"
        if not folder.exists():
            self.launch(config, folder, bf16=bf16)
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus):
    return Runs(tmp_path_factory.mktemp("zero"), corpus)


def values(run_folder: Path) -> list[float]:
    """Losses and gradient norms of the steps that were taken, and the validation loss."""
    records = [r for r in read_records(run_folder) if r["step"] != 3]
    curve = [float(r[key]) for r in records for key in ("train/loss", "optimizer/grad_norm")]
    return [*curve, records[-1]["eval/loss"]]


ZERO = ["zero2", "divided", "zero3_offload"]


@pytest.mark.distributed
@pytest.mark.parametrize("config", ZERO)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(runs, config):
    folder = runs.folder(config)
    before, after, later = (read_tensors(folder / f"checkpoint/step-{step}") for step in (2, 3, 4))
    assert equal_tensors(before, after) and not equal_tensors(after, later)
    records = read_records(folder)
    assert [record["optimizer/skipped_steps"] for record in records] == [0, 0, 1, 1, 1]
    assert not torch.isfinite(torch.tensor(float(records[2]["optimizer/grad_norm"])))


@pytest.mark.distributed
@pytest.mark.parametrize("config", ZERO)
def test_a_frozen_weight_and_odd_sizes_train_as_under_ddp(runs, config):
    assert values(runs.folder(config)) == pytest.approx(values(runs.folder("ddp")), rel=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("config", ZERO)
def test_a_checkpoint_holds_what_one_of_ddp_holds(runs, config):
    ours = read_tensors(runs.folder(config) / "checkpoint/step-5")
    theirs = read_tensors(runs.folder("ddp") / "checkpoint/step-5")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)
    assert not any("model.norm.weight." in name for name in ours)


@pytest.mark.distributed
@pytest.mark.parametrize("config", ZERO)
def test_the_export_has_the_weights_of_the_last_checkpoint_and_loads(runs, config):
    run = runs.folder(config)
    exported = read_weights(run / "hf")
    assert equal_tensors(exported, read_weights(run / "checkpoint/step-5"))
    expected = read_weights(runs.folder("ddp") / "hf")
    assert {n: w.shape for n, w in exported.items()} == {n: w.shape for n, w in expected.items()}
    model, loading = AutoModelForCausalLM.from_pretrained(run / "hf", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    loaded = {name: model.state_dict()[name] for name in exported}
    assert equal_tensors(loaded, exported)


@pytest.mark.distributed
def test_an_interrupted_run_resumes_with_the_same_bits(runs, tmp_path):
    shutil.copytree(runs.folder("divided"), tmp_path / "run")
    undo_checkpoint(tmp_path / "run/checkpoint/step-5")
    runs.launch("divided", tmp_path / "run")
    assert values(tmp_path / "run") == values(runs.folder("divided"))
    ends = [folder / "checkpoint/step-5" for folder in (tmp_path / "run", runs.folder("divided"))]
    assert equal_tensors(*map(read_tensors, ends))


@pytest.mark.distributed
def test_other_stages_and_numbers_of_ranks_resume(runs, tmp_path):
    shutil.copytree(runs.folder("divided"), tmp_path / "run")
    undo_checkpoint(tmp_path / "run/checkpoint/step-5")
    runs.launch("zero2", tmp_path / "run", processes=4)
    assert "continuing after step 4" in (tmp_path / "run/log.txt").read_text()
    assert values(tmp_path / "run") == pytest.approx(values(runs.folder("divided")), rel=1e-5)


@pytest.mark.distributed
def test_bf16_is_that_of_ddp(runs):
    zero, ddp = runs.folder("zero2", bf16=True), runs.folder("ddp", bf16=True)
    assert values(zero) == pytest.approx(values(ddp), rel=1e-5)
    assert values(zero) != pytest.approx(values(runs.folder("zero2")), rel=1e-5)
