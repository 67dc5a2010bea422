"""The ten worst traps of Accelerate, each a test that falls into it or shows the way around.

The tests' names number them. Laws that a trap only touches have tests of their own: topologies in
`unit/parallel/test_topology`, engines in `test_engines`, data in `test_data`, checkpoints in
`unit/checkpoint/test_folder`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import ParallelismConfig
from safetensors.torch import save_file

from flame_accel.checkpoint import CheckpointFolder
from flame_accel.config import OptimizerConfig, TrainingConfig, UserError
from flame_accel.parallel.accelerator import _build_fsdp_plugin
from flame_accel.parallel.deepspeed_config import build_deepspeed_config
from flame_accel.parallel.topology import resolve_engine_mesh_and_precision
from flame_accel.training import learning_rate
from tests.helpers.runs import ROOT, launch, read_records

pytestmark = pytest.mark.distributed

PROGRAMS = ROOT / "tests/helpers/rank_programs.py"
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
}
STEPS, WARMUP = 6, 2
CURVES = ("train/loss", "optimizer/grad_norm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus, tiny_model) -> dict[int, Path]:
    """The same run by number of processes, with two micro-batches and ragged documents."""
    root = tmp_path_factory.mktemp("traps")
    folders = {}
    for processes, config in ((1, "cpu"), (2, "ddp")):
        folders[processes] = root / str(processes)
        options = {
            "job.dump_folder": folders[processes],
            "model.config": tiny_model,
            "model.tokenizer_path": "byte",
            "training.dataset": corpus,
            "training.varlen": True,
            "training.context_len": 24,
            "training.seq_len": 64,
            "training.batch_size": 4 // processes,
            "training.gradient_accumulation_steps": 2,
            "training.steps": STEPS,
            "training.warmup_steps": WARMUP,
            "training.num_workers": 0,
            "metrics.log_freq": 1,
            "evaluation.sample_tokens": 0,
        }
        argv = [f"--{name}={value}" for name, value in options.items()]
        launch(argv, config=config, processes=processes)
    return folders


def checkpoint(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return folder / f"checkpoint/step-{STEPS}"


def write_config(path: Path, **changes: Any) -> str:
    """A changed copy of fsdp2.yaml, as `launch` names it."""
    config = yaml.safe_load((ROOT / "accelerate_configs/fsdp2.yaml").read_text())
    path.write_text(yaml.safe_dump({**config, **changes}))
    return str(path.with_suffix(""))


@pytest.mark.parametrize(
    "changes",
    [{"distributed_type": "MULTI_CPU", "use_cpu": True}, {"distributed_type": "NO"}],
    ids=["MULTI_CPU", "NO"],
)
def test_1_two_processes_that_come_out_as_one_do_not_train(tmp_path, changes):
    """The launcher starts one process for these, whatever num_processes says."""
    config = write_config(tmp_path / "mistaken.yaml", **changes, fsdp_config={})
    printed = launch(["describe"], config=config, processes=2, script=PROGRAMS, fails=True)
    assert "started this one alone" in printed
    assert "Traceback" not in printed


def test_2_a_model_without_storage_is_not_prepared():
    """Accelerate's optimizer would hold one parameter of 21, since all addresses are 0."""
    printed = launch(
        ["model_without_storage"], config="fsdp2", processes=2, script=PROGRAMS, fails=True
    )
    assert "RuntimeError: the model has no weights yet" in printed


def test_2_an_optimizer_that_lost_a_parameter_is_noticed():
    printed = launch(["lost_parameter"], config="fsdp2", processes=2, script=PROGRAMS, fails=True)
    assert "RuntimeError: after prepare the optimizer holds 20 parameters, the model 21" in printed


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_3_ranks_that_have_built_different_weights_do_not_train(config):
    """Sharding would make one model out of the pieces of two."""
    printed = launch(["different_weights"], config=config, processes=2, script=PROGRAMS, fails=True)
    assert "RuntimeError: ranks have built different initial weights of 16 parameters" in printed


def test_3_replicas_that_differ_do_not_train():
    printed = launch(
        ["different_replicas"], config="hsdp", processes=4, script=PROGRAMS, fails=True
    )
    assert "RuntimeError: the 2 copies of 1 parameters differ, such as model.norm" in printed


def test_4_the_learning_rate_does_not_know_the_number_of_processes(runs):
    """A prepared scheduler steps once for each process."""
    expected = [
        learning_rate(step, OptimizerConfig(), total_steps=STEPS, warmup_steps=WARMUP)
        for step in range(STEPS)
    ]
    for folder in runs.values():
        assert [record["optimizer/lr"] for record in read_records(folder)] == expected


def test_5_two_ranks_read_together_what_one_reads(runs):
    """A prepared loader drops half of what they read, or gives both the same."""
    one, two = (json.loads((checkpoint(runs[n]) / "data.json").read_text()) for n in (1, 2))
    assert one == two


def test_6_every_rank_has_its_own_state_in_a_checkpoint(runs):
    """Accelerate writes custom objects of rank 0 only, and loaders of all ranks to one file."""
    states = [(checkpoint(runs[2]) / f"rank-{rank}.json").read_text() for rank in (0, 1)]
    assert states[0] != states[1]


def test_7_a_save_that_is_interrupted_costs_nothing(tmp_path):
    """Accelerate deletes the old checkpoint first, and takes the biggest number for the newest."""
    folder = CheckpointFolder(tmp_path, keep_latest_k=1)
    save_file({"weight": torch.ones(1)}, folder.create_temporary_folder(1) / "model.safetensors")
    folder.write_manifest_rename_and_prune(1, {"step": 1})
    (folder.create_temporary_folder(2) / "model.safetensors").write_bytes(b"half")
    assert folder.find_newest_intact_checkpoint() == folder.checkpoint_path(1)


def test_8_defaults_that_cost_precision_or_memory_are_not_taken():
    training = TrainingConfig(batch_size=3, max_norm=0.5)
    topology = resolve_engine_mesh_and_precision(training, FSDP2, num_devices=None)
    plugin = _build_fsdp_plugin(topology, on_cpu=True)
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    assert plugin.mixed_precision_policy.reduce_dtype == torch.float32
    assert plugin.auto_wrap_policy is not None
    assert not plugin.cpu_ram_efficient_loading
    with pytest.raises(UserError, match="saves no memory"):
        resolve_engine_mesh_and_precision(
            training, FSDP2 | {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, num_devices=None
        )

    zero = build_deepspeed_config(training, bf16=True, pin_memory=False)
    assert zero["gradient_clipping"] == 0.5
    assert zero["train_micro_batch_size_per_gpu"] == 3


@pytest.mark.parametrize("axis", ["cp_size", "sp_size"])
def test_9_splitting_a_sequence_is_refused(tmp_path, axis):
    """Silently wrong for linear attention, whose models evade Accelerate's own check."""
    assert hasattr(ParallelismConfig(), axis)
    sizes = {f"parallelism_config_{axis}": 2, "parallelism_config_dp_shard_size": 1}
    config = write_config(tmp_path / "split.yaml", parallelism_config=sizes)
    printed = launch(["describe"], config=config, processes=2, script=PROGRAMS, fails=True)
    assert "silently wrong for linear attention" in printed


def test_9_a_split_model_is_prepared_without_accelerates_broken_import(runs, tmp_path):
    """It is `test_engines` that shows that the split model computes the same."""
    options = {
        "job.dump_folder": tmp_path / "run",
        "model.config": runs[1] / "hf/config.json",
        "training.steps": 1,
        "training.warmup_steps": 0,
    }
    resolved = ["--job.config_file", str(runs[1] / "config.toml")]
    argv = [*resolved, *(f"--{name}={value}" for name, value in options.items())]
    launch(argv, config="tp", processes=2)
    assert "tensor parallelism: 2 TP ranks" in (tmp_path / "run/log.txt").read_text()


def test_10_losses_and_norms_do_not_know_processes_and_micro_batches(runs):
    """Means of means, ranks that are averaged, a backward pass that divides again."""
    curves = [
        [record[key] for record in read_records(folder) for key in CURVES]
        for folder in runs.values()
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
