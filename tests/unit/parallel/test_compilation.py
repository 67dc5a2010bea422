"""Compiled blocks: the same losses, one compilation for all documents, no other change."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import AutoConfig, PreTrainedModel

from flame_accel import kernels
from flame_accel.config import ActivationCheckpointConfig, UserError
from flame_accel.kernels.wrapping import sequence_mixer_paths, wrap_functions
from flame_accel.models import build_model
from flame_accel.models.catalogue import tiny_config
from flame_accel.parallel import compilation
from flame_accel.parallel.activations import checkpoint_activations
from flame_accel.parallel.compilation import check_compiler_available, compile_blocks
from tests.helpers.runs import launch, read_records

OP = ActivationCheckpointConfig(mode="selective", selective_ac_option="op")


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the graphs that the compiler traces as they are; a test of its own uses inductor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    kernels.uninstall()
    kernels.install("torch")
    torch._dynamo.reset()
    compilation._compile_class_forward_once.cache_clear()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield
    kernels.uninstall()
    kernels.install("torch")
    compilation._compile_class_forward_once.cache_clear()
    torch._dynamo.reset()
    torch.set_num_threads(threads)


def build(model_type: str, **changes: Any) -> PreTrainedModel:
    config = tiny_config(model_type, **changes)
    return build_model(config, vocabulary_size=256, bos_token_id=None, eos_token_id=None, seed=0)


def ragged_batches(steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of 96 tokens with one to nine documents."""
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        ids = torch.randint(256, (1, 96), generator=generator)
        cuts = torch.randperm(95, generator=generator)[: step * 5 % 9].add(1).sort().values
        ends = torch.tensor([0]), cuts, torch.tensor([96])
        yield {"input_ids": ids, "labels": ids, "cu_seqlens": torch.cat(ends).int()}


def count_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def assert_same_training(model: PreTrainedModel, plain: PreTrainedModel, steps: int) -> None:
    """Losses and gradients at the same weights, with no new graph after the first step."""
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.002)
    graphs = []
    for batch in ragged_batches(steps):
        model.load_state_dict(plain.state_dict())
        losses = [m.train()(**batch).loss for m in (plain, model)]
        optimizer.zero_grad()
        model.zero_grad()
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        norms = [nn.utils.get_total_norm(p.grad for p in m.parameters()) for m in (plain, model)]
        torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
        optimizer.step()
        with torch.no_grad():
            model.eval()(**batch, use_cache=False)
        graphs.append(count_graphs())
    assert 0 < graphs[0] == graphs[-1]


def test_ragged_steps_compile_once_and_op_runs_no_operator_twice() -> None:
    calls: list[str] = []

    def count(operator: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operator)
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(operator.__name__)
            return operator(*args, **kwargs)

        return counted

    wrap_functions(sequence_mixer_paths(), count)
    changes = {"attn": {"layers": [1], "num_heads": 2}}
    plain, model = build("gla", **changes), build("gla", **changes)
    compile_blocks(model)
    checkpoint_activations(model, OP)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same_training(model, plain, 20)
    # each step calls two models, and the compiled one again to evaluate
    mixers = {"chunk_gla", "flash_attn_func", "flash_attn_varlen_func"}
    assert len(mixers.intersection(calls)) == 2
    assert sum(name in mixers for name in calls) == 20 * 2 * 3


# by mixer: generation of PaTH forbids to compile; the other cuts batches document by document
@pytest.mark.parametrize("model_type", ["path_attn", "mamba3"])
def test_mixers_with_graph_breaks_of_their_own_compile_once(model_type: str, monkeypatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    model = build(model_type, num_hidden_layers=1)
    compile_blocks(model)
    assert_same_training(model, build(model_type, num_hidden_layers=1), 3)


def test_evaluation_and_generation_are_not_compiled() -> None:
    model, plain = build("gla").eval(), build("gla").eval()
    compile_blocks(model)
    ids = next(ragged_batches(1))["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    assert count_graphs() == 0


def test_a_model_of_transformers_is_compiled_once_for_all_layers() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    plain, model = (
        build_model(config, vocabulary_size=256, bos_token_id=None, eos_token_id=None, seed=0)
        for _ in range(2)
    )
    compile_blocks(model)
    ids = next(ragged_batches(1))["input_ids"]
    losses = [m.train()(input_ids=ids, labels=ids).loss.item() for m in (model, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert count_graphs() == 1


def test_a_missing_compiler_is_noticed_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler; there is no no-such-compiler"):
        check_compiler_available(torch.device("cpu"))
    with pytest.raises(UserError, match="compiling for cuda needs Triton"):
        check_compiler_available(torch.device("cuda"))


PACKED = {"training.varlen": True, "training.context_len": 24, "training.steps": 3}


def read_curve(run_folder: Path) -> list[float]:
    names = ("train/loss", "optimizer/grad_norm", "eval/loss")
    return [record[name] for record in read_records(run_folder) for name in names if name in record]


@pytest.mark.covers_option("training.compile")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_run_has_the_losses_of_one_that_is_not_compiled(
    backend, flags, corpus, train_here, tmp_path, monkeypatch
) -> None:
    changes = {"evaluation.dataset": corpus, **PACKED}
    train_here(flags(**{"job.dump_folder": tmp_path / "plain"}, **changes))
    monkeypatch.setattr(compilation, "BACKEND", backend)
    changes |= {"job.dump_folder": tmp_path / "compiled", "training.compile": True}
    changes["activation_checkpoint.mode"] = "full"
    train_here(flags(**changes))
    assert count_graphs() > 0
    assert read_curve(tmp_path / "compiled") == pytest.approx(
        read_curve(tmp_path / "plain"), rel=1e-5
    )
    assert (tmp_path / "compiled/hf/config.json").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_sharded_blocks_compile_and_recompute_to_the_same_losses(
    flags, train_here, tmp_path
) -> None:
    train_here(flags(**{"job.dump_folder": tmp_path / "one"}, **PACKED))
    changes = {
        "job.dump_folder": tmp_path / "two",
        "training.batch_size": 2,
        "training.compile": True,
        "activation_checkpoint.mode": "selective",
        "activation_checkpoint.selective_ac_option": "op",
    }
    launch(flags(**{**PACKED, **changes}), config="fsdp2", processes=2)
    assert read_curve(tmp_path / "two") == pytest.approx(read_curve(tmp_path / "one"), rel=1e-5)
