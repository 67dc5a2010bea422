"""A checkpoint resumes under another engine or mesh, with the same losses."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.checkpoints import undo_checkpoint
from tests.helpers.runs import launch, read_records

pytestmark = pytest.mark.distributed


KDA = (
    '{"model_type": "kda", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2,'
    ' "head_dim": 16, "vocab_size": 258}'
)


def test_a_checkpoint_with_ignored_parameters_resumes_under_another_engine(corpus, tmp_path):
    model = tmp_path / "kda.json"
    model.write_text(KDA)

    def train(config: str, processes: int, folder: Path) -> list[float]:
        options = {
            "job.dump_folder": folder,
            "model.config": model,
            "model.tokenizer_path": "byte",
            "training.dataset": corpus,
            "training.seq_len": 32,
            "training.batch_size": 4 // processes,
            "training.steps": 4,
            "training.warmup_steps": 1,
            "training.num_workers": 0,
            "metrics.log_freq": 1,
            "checkpoint.interval": 2,
            "evaluation.sample_tokens": 0,
        }
        argv = [f"--{name}={value}" for name, value in options.items()]
        launch(argv, config=config, processes=processes)
        return [
            r[key] for r in read_records(folder) for key in ("train/loss", "optimizer/grad_norm")
        ]

    expected = train("hsdp", 4, tmp_path / "sharded")
    shutil.copytree(tmp_path / "sharded", tmp_path / "moved")
    undo_checkpoint(tmp_path / "moved/checkpoint/step-4")
    assert train("cpu", 1, tmp_path / "moved") == pytest.approx(expected, rel=1e-5)


def read_curve(run_folder: Path) -> list[float]:
    """Losses and gradient norms of all steps, then the validation loss."""
    records = read_records(run_folder)
    values = [record[key] for record in records for key in ("train/loss", "optimizer/grad_norm")]
    return [*values, records[-1]["eval/loss"]]


@pytest.fixture(scope="module")
def train_hybrid(tmp_path_factory, corpus):
    """`train_hybrid(config, processes, folder, rows, *flags)`: the curve of a run of a hybrid."""
    model = tmp_path_factory.mktemp("model") / "kda.json"
    # heads with their own decays, softmax attention, and a tied vocabulary of odd size
    description = {
        **{"model_type": "kda", "num_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
        **{"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 259},
        "attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2},
    }
    model.write_text(json.dumps(description))

    def train(config: str, processes: int, folder: Path, rows: int, *flags: str) -> list[float]:
        options = {
            **{"job.dump_folder": folder, "model.config": model, "model.tokenizer_path": "byte"},
            **{"training.dataset": corpus, "evaluation.dataset": corpus, "training.seq_len": 64},
            **{"training.steps": 4, "training.warmup_steps": 2, "training.num_workers": 0},
            **{"metrics.log_freq": 1, "checkpoint.interval": 2, "evaluation.sample_tokens": 0},
            **{"training.varlen": True, "training.context_len": 24, "training.batch_size": rows},
        }
        argv = [*(f"--{name}={value}" for name, value in options.items()), *flags]
        launch(argv, config=config, processes=processes)
        return read_curve(folder)

    return train


def test_checkpoints_move_between_tensor_parallel_meshes_and_one_process(train_hybrid, tmp_path):
    one, mesh = tmp_path / "one", tmp_path / "mesh"
    degree = "--training.tensor_parallel_degree=2"
    whole = train_hybrid("cpu", 1, one, 8)
    assert train_hybrid("fsdp2_tp", 4, mesh, 4, degree) == pytest.approx(whole, rel=1e-5)
    for folder in (one, mesh):
        undo_checkpoint(folder / "checkpoint/step-4")
    moved = {
        mesh: train_hybrid("cpu", 1, mesh, 8),
        # the launch decides the degree
        one: train_hybrid("tp", 2, one, 8, "--training.disable_loss_parallel"),
    }
    for folder, resumed in moved.items():
        assert "continuing after step 2" in (folder / "log.txt").read_text()
        assert resumed == pytest.approx(whole, rel=1e-5)
