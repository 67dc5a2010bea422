"""Laws of FSDP2: what stays whole and in fp32 beside it, and when gathered weights are freed."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flame_accel.config import UserError
from flame_accel.models.catalogue import registered_config_classes, tiny_config
from flame_accel.models.instantiate import instantiate
from flame_accel.models.parameter_groups import fp32_parameter_names
from flame_accel.parallel.fp32_parameters import average_ignored_gradients, ignore_fp32_params
from flame_accel.parallel.resharding import check_reshard_after_forward
from tests.helpers.runs import ROOT, launch, read_records

PROGRAMS = ROOT / "tests/helpers/fsdp2_programs.py"
KDA = (
    '{"model_type": "kda", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2,'
    ' "head_dim": 16, "vocab_size": 258}'
)


def run_program(*arguments: str, config: str = "fsdp2", processes: int = 2) -> None:
    launch([*arguments], config=config, processes=processes, script=PROGRAMS)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("config", "processes", "model_types"),
    [("fsdp2", 2, ("kda", "gated_deltanet", "mamba2")), ("fsdp2_offload", 2, ("kda",))],
)
def test_models_with_whole_parameters_train_as_on_one_process(config, processes, model_types):
    run_program("equals_one_process", *model_types, config=config, processes=processes)


@pytest.mark.distributed
def test_decays_stay_exact_beside_bf16():
    run_program("stays_exact_in_bf16")


@pytest.mark.distributed
def test_a_checkpoint_with_whole_parameters_resumes_under_another_engine(corpus, tmp_path):
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
    shutil.rmtree(tmp_path / "moved/checkpoint/step-4")
    assert train("cpu", 1, tmp_path / "moved") == pytest.approx(expected, rel=1e-5)


@pytest.mark.covers_option("training.fsdp_reshard_after_forward")
@pytest.mark.distributed
def test_weights_are_freed_as_the_option_says():
    run_program("gathers_as_asked")


@pytest.mark.parametrize(
    ("asked", "launched", "message"),
    [
        ("always", False, "always contradicts fsdp_reshard_after_forward: false"),
        ("always", None, "no weights are gathered"),
        ("never", None, "no weights are gathered"),
    ],
)
def test_resharding_that_cannot_be_is_refused(asked, launched, message):
    with pytest.raises(UserError, match=message):
        check_reshard_after_forward(accelerator(reshards=launched), asked)


@pytest.mark.parametrize(
    ("asked", "launched"),
    [
        ("default", True),
        ("default", False),
        ("default", None),
        ("always", True),
        ("never", False),
        ("never", True),
    ],
)
def test_resharding_that_can_be_is_accepted(asked, launched):
    check_reshard_after_forward(accelerator(reshards=launched), asked)


def accelerator(*, reshards: bool | None) -> SimpleNamespace:
    """One that shards, or with None, one that does not."""
    plugin = SimpleNamespace(reshard_after_forward=reshards, ignored_modules=None)
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(
        is_fsdp2=reshards is not None, state=state, device=torch.device("cpu"), num_processes=1
    )


def test_other_engines_leave_nothing_whole():
    other = accelerator(reshards=None)
    model = instantiate(tiny_config("kda"))
    ignore_fp32_params(other, model)
    average_ignored_gradients(other)
    assert other.state.fsdp_plugin.ignored_modules is None


def mixed(model_type: str) -> nn.Module:
    """A model as FSDP2 with bf16 runs it: whole parameters in fp32, the others gathered in bf16."""
    model = instantiate(tiny_config(model_type))
    names = set(fp32_parameter_names(model))
    for name, parameter in model.named_parameters():
        if name not in names:
            parameter.data = parameter.data.bfloat16()
    return model


@pytest.mark.parametrize(
    "model_type",
    ["comba", "gated_deltanet", "kda", "log_linear_mamba2", "mamba", "mamba2", "mamba3"],
)
def test_fp32_decays_fit_beside_bf16_weights(model_type):
    model = mixed(model_type)
    tokens = torch.randint(3, 256, (1, 64), generator=torch.Generator().manual_seed(0))
    model(input_ids=tokens, labels=tokens).loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype is parameter.dtype
        assert parameter.grad.isfinite().all()


def test_what_stays_whole_is_small():
    for model_type in registered_config_classes():
        with torch.device("meta"):
            model = instantiate(tiny_config(model_type))
        whole = set(fp32_parameter_names(model))
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        assert sum(sizes[name] for name in whole) <= 0.05 * sum(sizes.values()), model_type
