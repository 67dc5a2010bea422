"""Laws of several processes over gloo, through `accelerate launch`: engines agree."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, launch, launch_environment, read_records

pytestmark = pytest.mark.distributed

# of these rows each rank has its share, and packed documents give ranks unequal numbers of targets
SIXTEEN_ROWS = {"training.batch_size": 4, "training.gradient_accumulation_steps": 4}
PACKED = {"training.varlen": True, "training.context_len": 24, "evaluation.sample_tokens": 0}


def curve(run_folder: Path) -> list[float]:
    """Losses and gradient norms of all steps, then the validation loss."""
    records = read_records(run_folder)
    values = [record[key] for record in records for key in ("train/loss", "optimizer/grad_norm")]
    return [*values, records[-1]["eval/loss"]]


@pytest.fixture(scope="module")
def launched(tmp_path_factory, corpus, tiny_model):
    """Runs by (accelerate configuration, processes), each made once."""
    root = tmp_path_factory.mktemp("runs")

    def run(config: str, processes: int, folder: Path | None = None, **changes) -> Path:
        folder = folder or root / f"{config}-{processes}"
        if folder.exists() and not changes:
            return folder
        options = {
            "job.dump_folder": folder,
            "model.config": tiny_model,
            "model.tokenizer_path": "byte",
            "training.dataset": corpus,
            "evaluation.dataset": corpus,
            "training.seq_len": 64,
            "training.steps": 6,
            "training.warmup_steps": 2,
            "training.num_workers": 1,
            "metrics.log_freq": 1,
            "checkpoint.interval": 3,
            **PACKED,
            **SIXTEEN_ROWS,
            "training.gradient_accumulation_steps": 4 // processes,
            **changes,
        }
        argv = [f"--{name}={value}" for name, value in options.items()]
        launch(argv, config=config, processes=processes)
        return folder

    return run


@pytest.mark.parametrize(("config", "processes"), [("ddp", 2), ("fsdp2", 2)])
def test_engines_and_world_sizes_agree(launched, config, processes):
    assert curve(launched(config, processes)) == pytest.approx(curve(launched("cpu", 1)), rel=1e-5)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"), [(("fsdp2", 2), ("cpu", 1)), (("cpu", 1), ("fsdp2", 2))]
)
def test_a_checkpoint_resumes_under_another_engine(launched, tmp_path, saved_by, loaded_by):
    folder = tmp_path / "moved"
    shutil.copytree(launched(*saved_by), folder)
    shutil.rmtree(folder / "checkpoint/step-6")
    launched(*loaded_by, folder=folder, **{"job.description": "moved"})
    assert "continuing after step 3" in (folder / "log.txt").read_text()
    assert curve(folder) == pytest.approx(curve(launched("cpu", 1)), rel=1e-5)


def test_two_processes_of_train_sh_equal_one_with_twice_the_accumulation(
    tmp_path, corpus, tiny_model
):
    import subprocess

    def run(name: str, processes: int) -> list[float]:
        done = subprocess.run(
            [
                *("bash", str(ROOT / "train.sh")),
                *("--model.config", str(tiny_model), "--model.tokenizer_path", "byte"),
                *("--training.dataset", str(corpus), "--training.batch_size", "4"),
                *("--training.seq_len", "64", "--training.steps", "4"),
                *("--training.warmup_steps", "2", "--metrics.log_freq", "1"),
                *("--training.gradient_accumulation_steps", str(2 // processes)),
                *("--evaluation.sample_tokens", "0", "--job.dump_folder", str(tmp_path / name)),
            ],
            env=launch_environment(NGPU=str(processes)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [record["train/loss"] for record in read_records(tmp_path / name)]

    assert run("two", 2) == pytest.approx(run("one", 1), rel=1e-5)


def test_the_options_of_data_parallelism_are_held_against_the_launch(corpus, tiny_model, tmp_path):
    argv = [
        *(f"--job.dump_folder={tmp_path}", f"--model.config={tiny_model}"),
        *("--model.tokenizer_path=byte", f"--training.dataset={corpus}"),
        *("--training.steps=4", "--training.warmup_steps=1"),
        "--training.data_parallel_shard_degree=1",
    ]
    printed = launch(argv, config="fsdp2", processes=2, fails=True)
    assert "training.data_parallel_shard_degree = 1" in printed
    assert "contradicts distributed_type: FSDP" in printed
