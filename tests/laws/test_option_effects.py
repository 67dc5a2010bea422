"""What options do, from the command line to what they change, where no other file looks at that.

Those of data are in unit/data/test_from_options.py; marks say which test looks at which
option, and laws/test_options.py checks that each has one.
"""

import gc
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flame_accel.config import Config, ConfigError, UserError, parse
from flame_accel.config.schema import options
from flame_accel.data import load_tokenizer
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate
from flame_accel.parallel.float8 import convert_to_float8
from flame_accel.parallel.topology import resolve_topology
from flame_accel.training import build_optimizer
from tests.helpers.runs import read_records
from tests.unit.parallel.test_topology import FSDP2
from tests.unit.training.test_optimizer import ONE_DEVICE, build


@pytest.fixture
def configured(flags: Callable[..., list[str]]) -> Callable[..., Config]:
    """`configured(**{"section.option": value})`: the configuration of a tiny run."""
    return lambda **changes: parse(flags(**changes))


def log_of(run_folder: Path) -> str:
    return (run_folder / "log.txt").read_text()


FEW = {
    "training.steps": 2,
    "checkpoint.enable_checkpoint": False,
    "evaluation.sample_tokens": 0,
}
"""A run of a fifth of a second."""


@pytest.mark.covers_option("job.description")
def test_description_titles_the_report(train_here, flags, tmp_path):
    train_here(flags(**FEW, **{"job.description": "a <small> run"}))
    assert "<title>a &lt;small&gt; run</title>" in (tmp_path / "run/report.html").read_text()
    train_here(flags(**FEW, **{"job.dump_folder": tmp_path / "nameless"}))
    assert "<title>nameless</title>" in (tmp_path / "nameless/report.html").read_text()


@pytest.mark.covers_option("job.print_args")
@pytest.mark.parametrize("asked", [True, False])
def test_print_args_shows_all_options(train_here, flags, tmp_path, asked):
    train_here(flags(**FEW, **{"job.print_args": asked}))
    assert ("[optimizer]" in log_of(tmp_path / "run")) == asked
    assert ("beta2 = 0.95" in log_of(tmp_path / "run")) == asked


@pytest.mark.covers_option("model.tokenizer_path")
def test_the_tokenizer_is_the_one_that_is_named(train_here, flags, tmp_path):
    tokenizer = load_tokenizer("byte", False)
    tokenizer.add_tokens(["abc def "])
    tokenizer.save_pretrained(tmp_path / "mine")
    train_here(flags(**FEW, **{"model.tokenizer_path": tmp_path / "mine"}))
    exported = load_tokenizer(str(tmp_path / "run/hf"), False)
    assert len(exported("abc def ")["input_ids"]) == 1
    vocabulary = json.loads((tmp_path / "run/hf/config.json").read_text())["vocab_size"]
    assert vocabulary >= len(tokenizer) > 258


@pytest.mark.covers_option("model.kernels")
def test_kernels_are_those_that_are_named(train_here, flags, tmp_path):
    train_here(flags(**FEW, **{"model.kernels": "torch"}))
    assert "kernels: torch" in log_of(tmp_path / "run")
    # without a device for them, Triton's are refused rather than replaced
    with pytest.raises(UserError, match="Triton has no device"):
        train_here(flags(**FEW, **{"model.kernels": "triton"}))


@pytest.mark.covers_option("checkpoint.folder")
def test_checkpoints_are_in_the_folder_that_is_named(train_here, flags, tmp_path):
    few = FEW | {"checkpoint.enable_checkpoint": True, "checkpoint.folder": "kept/here"}
    train_here(flags(**few))
    assert (tmp_path / "run/kept/here/step-2/manifest.json").is_file()
    assert not (tmp_path / "run/checkpoint").exists()


@pytest.mark.covers_option("training.skip_nan_inf")
@pytest.mark.parametrize("skips", [True, False])
def test_skip_nan_inf_decides_what_becomes_of_such_an_update(
    train_here, flags, tmp_path, monkeypatch, skips
):
    from flame_accel import train

    finite = []
    compute = train.train_step

    def spoil(accelerator, model, optimizer, micro_batches, **options):
        hook = model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
        result = compute(accelerator, model, optimizer, micro_batches, **options)
        hook.remove()
        finite.append(all(p.isfinite().all().item() for p in model.parameters()))
        return result

    monkeypatch.setattr(train, "train_step", spoil)
    monkeypatch.setattr(train, "export_and_report", lambda *_: None)
    train_here(flags(**FEW, **{"training.skip_nan_inf": skips}))
    assert finite == [skips, skips]


@pytest.mark.covers_option("training.gc_freq")
@pytest.mark.parametrize(("frequency", "collections"), [(3, 2), (0, 0)])
def test_gc_freq_collects_at_its_steps_and_0_leaves_it_to_python(
    train_here, flags, monkeypatch, frequency, collections
):
    from flame_accel import train

    called: list[str] = []
    spy = SimpleNamespace(
        disable=lambda: called.append("disable"), collect=lambda: called.append("collect")
    )
    monkeypatch.setattr(train, "gc", spy)
    train_here(flags(**FEW | {"training.gc_freq": frequency, "training.steps": 6}))
    assert called == (["disable"] if frequency else []) + ["collect"] * collections
    assert gc.isenabled()


@pytest.mark.covers_option("training.deterministic")
def test_deterministic_asks_torch_and_cublas_for_it(train_here, flags, monkeypatch):
    seen = []
    # set first, so that what the run sets is taken back
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(
        "flame_accel.train.train",
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    monkeypatch.setattr("flame_accel.train.export_and_report", lambda *_: None)
    try:
        for deterministic in (False, True):
            train_here(flags(**{"training.deterministic": deterministic}))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert seen == [False, True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.covers_option("training.seed")
def test_seed_decides_weights_and_order(train_here, flags, tmp_path):
    def first_loss(name: str, seed: int) -> float:
        train_here(flags(**FEW, **{"job.dump_folder": tmp_path / name, "training.seed": seed}))
        return read_records(tmp_path / name)[0]["train/loss"]

    assert first_loss("one", 1) == first_loss("again", 1) != first_loss("two", 2)


@pytest.mark.covers_option(
    "optimizer.lr", "optimizer.scheduler", "optimizer.min_lr_ratio", "training.warmup_steps"
)
def test_the_learning_rate_follows_its_options(train_here, flags, tmp_path):
    rate: dict[str, Any] = {
        "optimizer.lr": 0.01,
        "optimizer.scheduler": "cosine",
        "optimizer.min_lr_ratio": 0.5,
        "training.warmup_steps": 3,
        "training.steps": 7,
    }
    train_here(flags(**FEW | rate))
    warm_up = [0.01 * step / 3 for step in (1, 2, 3)]
    decay = [0.01 * (0.5 + 0.5 * (1 + math.cos(math.pi * x / 4)) / 2) for x in (1, 2, 3, 4)]
    rates = [record["optimizer/lr"] for record in read_records(tmp_path / "run")]
    assert rates == pytest.approx(warm_up + decay)


@pytest.mark.covers_option("training.max_norm")
def test_max_norm_clips_and_0_does_not(train_here, flags, tmp_path, monkeypatch):
    from flame_accel import train

    norms: dict[str, list[float]] = {}
    compute = train.train_step

    def look(accelerator, model, optimizer, micro_batches, **options):
        kept = {}

        def before_update(*_: Any) -> None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            kept["norm"] = torch.nn.utils.get_total_norm(gradients).item()

        handle = optimizer.optimizer.register_step_pre_hook(before_update)
        result = compute(accelerator, model, optimizer, micro_batches, **options)
        handle.remove()
        norms.setdefault(str(options["max_norm"]), []).append(kept["norm"])
        return result

    monkeypatch.setattr(train, "train_step", look)
    for largest in (0.01, 0):
        folder = {"job.dump_folder": tmp_path / str(largest)}
        train_here(flags(**FEW, **folder, **{"training.max_norm": largest}))
    assert norms["0.01"] == pytest.approx([0.01] * 2, rel=1e-3)
    reported = [record["optimizer/grad_norm"] for record in read_records(tmp_path / "0")]
    assert norms["0.0"] == pytest.approx(reported) and min(reported) > 0.1


@pytest.mark.covers_option("evaluation.prompt", "evaluation.sample_tokens")
def test_the_sample_goes_on_from_the_prompt_for_so_many_tokens(train_here, flags, tmp_path):
    train_here(flags(**FEW | {"evaluation.prompt": "abc def", "evaluation.sample_tokens": 5}))
    _, _, sample = log_of(tmp_path / "run").partition("sample of the exported model:\n")
    # the next line of the log begins with the time
    sample = re.split(r"\n\d{4}-\d\d-\d\d ", sample)[0]
    assert sample.startswith("abc def")
    # one byte each, or less where several bytes are one character
    assert len(sample) <= len("abc def") + 5


@pytest.mark.covers_option(
    "optimizer.eps", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay"
)
def test_the_optimizer_gets_its_numbers(configured):
    config = configured(
        **{
            "optimizer.lr": 0.5,
            "optimizer.eps": 0.25,
            "optimizer.beta1": 0.125,
            "optimizer.beta2": 0.75,
            "optimizer.weight_decay": 0.0625,
        }
    )
    optimizer = build_optimizer(ONE_DEVICE, build(), config.optimizer)
    decays = set()
    for group in optimizer.param_groups:
        assert (group["lr"], group["eps"], tuple(group["betas"])) == (0.5, 0.25, (0.125, 0.75))
        decays.add(group["weight_decay"])
    assert decays == {0.0625, 0.0}


@pytest.mark.covers_option("training.mixed_precision_reduce")
def test_gradients_are_summed_in_fp32_beside_bf16(configured):
    config = configured(**{"training.mixed_precision_reduce": "float32"})
    launch = FSDP2 | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    launch["ACCELERATE_MIXED_PRECISION"] = "bf16"
    topology = resolve_topology(config.training, launch, devices=None)
    assert (topology.param_dtype, topology.reduce_dtype) == ("bfloat16", "float32")
    with pytest.raises(ConfigError, match="must be one of float32"):
        configured(**{"training.mixed_precision_reduce": "bfloat16"})


@pytest.mark.covers_option("float8.force_recompute_fp8_weight_in_bwd")
def test_no_weight_is_kept_in_8_bits_for_the_backward_pass(configured):
    config = configured(
        **{
            "float8.recipe_name": "tensorwise",
            "float8.emulate": True,
            "float8.force_recompute_fp8_weight_in_bwd": True,
        }
    )
    model = instantiate(tiny_config("gla", hidden_size=128), seed=0)
    convert_to_float8(model, config.float8)
    assert any("Float8" in type(module).__name__ for module in model.modules())
    kept = []
    ids = torch.arange(32)[None]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        model(input_ids=ids, labels=ids)
    assert len(kept) > 10 and all(tensor.element_size() >= 4 for tensor in kept)


@pytest.mark.covers_option(
    "checkpoint.async_mode",
    "experimental.context_parallel_degree",
    "experimental.pipeline_parallel_degree",
    "experimental.enable_async_tensor_parallel",
    "experimental.enable_compiled_autograd",
)
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("checkpoint.async_mode", "async", "not available"),
        ("experimental.context_parallel_degree", 2, "silently wrong for linear attention"),
        ("experimental.pipeline_parallel_degree", 2, "pipeline parallelism"),
        ("experimental.enable_async_tensor_parallel", True, "tensor parallelism"),
        ("experimental.enable_compiled_autograd", True, "backward pass"),
    ],
)
def test_what_is_not_supported_says_why(configured, name, value, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        configured(**{name: value})
    assert f"--{name}" in str(refused.value)
    # what the option says by itself asks for nothing
    configured(**{name: options()[name].default})
