"""Several processes over gloo, beside what `test_engines` states: train.sh, contradictions."""

import subprocess

import pytest

from tests.helpers.runs import ROOT, launch, launch_environment, read_records

pytestmark = pytest.mark.distributed


def test_two_processes_of_train_sh_equal_one_with_twice_the_accumulation(
    tmp_path, corpus, tiny_model
):
    def options(name: str, processes: int) -> list[str]:
        return [
            *("--model.config", str(tiny_model), "--model.tokenizer_path", "byte"),
            *("--training.dataset", str(corpus), "--training.batch_size", "4"),
            *("--training.seq_len", "64", "--training.steps", "4"),
            *("--training.warmup_steps", "2", "--metrics.log_freq", "1"),
            *("--training.gradient_accumulation_steps", str(2 // processes)),
            *("--evaluation.sample_tokens", "0", "--job.dump_folder", str(tmp_path / name)),
        ]

    done = subprocess.run(
        ["bash", str(ROOT / "train.sh"), *options("two", 2)],
        env=launch_environment(NGPU="2"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    launch(options("one", 1), config="cpu", processes=1)
    two, one = (
        [record["train/loss"] for record in read_records(tmp_path / name)]
        for name in ("two", "one")
    )
    assert len(two) == 4
    assert two == pytest.approx(one, rel=1e-5)


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
