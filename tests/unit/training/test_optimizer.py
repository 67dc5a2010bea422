"""Laws of the optimizers: what each computes, wherever its weights are, and when."""

import json
import shutil
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from flame_accel.config import ConfigError, OptimizerConfig, UserError, parse
from flame_accel.models import register_models
from flame_accel.models.build import build_model
from flame_accel.training import build_optimizer, check_optimizer_support, muon
from flame_accel.training.muon import orthogonalize
from flame_accel.training.optimizer import hidden_matrices
from flame_accel.training.optimizer_in_backward import OptimizerInBackward
from tests.helpers.runs import TINY_GLA, launch, read_records

NAMES = ("AdamW", "Adam", "Muon")
OPTIONS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
EARLY = {
    "optimizer.early_step_in_backward": True,
    "training.max_norm": 0,
    "training.skip_nan_inf": False,
}


def engine(distributed_type: DistributedType, **changes: Any) -> Any:
    """What an optimizer asks of an Accelerator."""
    known = {"device": torch.device("cpu"), "parallelism_config": None, "is_fsdp2": False}
    return SimpleNamespace(
        distributed_type=distributed_type, **known | {"num_processes": 1} | changes
    )


ONE_DEVICE = engine(DistributedType.NO)


def build(**fields) -> PreTrainedModel:
    register_models()
    config = AutoConfig.for_model(**TINY_GLA | fields)
    return build_model(config, vocabulary_size=258, bos_token_id=1, eos_token_id=2, seed=0)


def take_steps(model: nn.Module, *optimizers: Any, steps: int = 3, scale: float = 1.0) -> None:
    """Gives random gradients to all parameters, the same whoever asks, and updates."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def snapshot(model: nn.Module, optimizer: Any) -> list[Tensor]:
    states = [value for p in model.parameters() for value in optimizer.state[p].values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *states)]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.covers_option("optimizer.fused")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_adam_and_adamw_are_torchs_to_the_bit(name, fused):
    model, reference = build(), build()
    optimizer = build_optimizer(
        ONE_DEVICE, model, OptimizerConfig(name=name, fused=fused, **OPTIONS)
    )
    decayed = [p for p in reference.parameters() if p.squeeze().ndim >= 2]
    exempt = [p for p in reference.parameters() if p.squeeze().ndim < 2]
    groups = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
    torchs = getattr(torch.optim, name)(groups, betas=(0.9, 0.95), fused=fused, **OPTIONS)
    take_steps(model, optimizer)
    take_steps(reference, torchs)
    assert all(map(torch.equal, weights(model), weights(reference)))
    assert optimizer.defaults["fused"] is fused


def test_weight_decay_of_adamw_is_beside_the_update_and_that_of_adam_inside_it():
    moved = {}
    for name in ("AdamW", "Adam"):
        model = build()
        optimizer = build_optimizer(ONE_DEVICE, model, OptimizerConfig(name=name, **OPTIONS))
        before = model.lm_head.weight.detach().clone()
        # of a gradient of zeros only the decay is left: a share of the weight, or a gradient
        take_steps(model, optimizer, steps=1, scale=0.0)
        moved[name] = before - model.lm_head.weight.detach()
    torch.testing.assert_close(moved["AdamW"], 0.01 * 0.1 * before)
    first_update = 0.1 * before / (0.1 * before.abs() + 1e-8)
    torch.testing.assert_close(moved["Adam"], 0.01 * first_update, rtol=1e-4, atol=1e-7)


def test_without_a_fused_kernel_the_device_gets_torchs_default():
    accelerator = engine(DistributedType.NO, device=torch.device("hpu"))
    optimizer = build_optimizer(accelerator, build(), OptimizerConfig())
    assert optimizer.defaults["fused"] is False


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_orthogonalize_keeps_the_directions_and_evens_out_their_lengths(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    core = u.mT @ orthogonalize(matrices) @ v.mT
    lengths = core.diagonal(dim1=-2, dim2=-1)
    # the iteration lifts what is above a few thousandths of the largest
    large = s > 0.01 * s.amax(dim=-1, keepdim=True)
    assert large.float().mean() > 0.9
    assert lengths[large].min() > 0.6 and lengths.max() < 1.3
    torch.testing.assert_close(core, torch.diag_embed(lengths), rtol=0, atol=1e-4)


def follow_by_hand(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """Muon's formulas in double precision, one matrix at a time, without batches or transposes."""
    weight, momentum = weight.double(), torch.zeros_like(weight, dtype=torch.double)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient.double()
        x = 0.05 * gradient.double() + 0.95 * momentum
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        weight = weight - 0.01 * 0.1 * weight - 0.01 * 0.2 * max(weight.shape) ** 0.5 * x
    return weight.float()


@pytest.mark.covers_option("optimizer.name")
def test_muon_is_its_formulas_on_hidden_matrices_and_adamw_on_the_rest():
    model, start, adamw_model = build(), build(), build()
    config = OptimizerConfig(name="Muon", **OPTIONS)
    optimizer = build_optimizer(ONE_DEVICE, model, config)
    adamw = build_optimizer(ONE_DEVICE, adamw_model, OptimizerConfig(name="AdamW", **OPTIONS))
    matrices = hidden_matrices(model)
    gradients: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}

    def keep() -> None:
        for name, parameter in model.named_parameters():
            gradients[name].append(parameter.grad)

    take_steps(model, SimpleNamespace(step=keep), optimizer)
    take_steps(adamw_model, adamw)
    references = zip(
        model.named_parameters(), start.parameters(), weights(adamw_model), strict=True
    )
    for (name, parameter), first, adamws in references:
        if parameter in matrices:
            expected = follow_by_hand(first.detach(), gradients[name])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(parameter.detach(), adamws), name


def test_muon_is_torchs_in_bfloat16(monkeypatch):
    monkeypatch.setattr(muon, "_to_iteration_dtype", lambda shard, parameter: shard.bfloat16())
    model, reference = build(), build()
    optimizer = build_optimizer(ONE_DEVICE, model, OptimizerConfig(name="Muon", **OPTIONS))
    mine, others = hidden_matrices(model), hidden_matrices(reference)
    theirs = [parameter for parameter in reference.parameters() if parameter in others]
    torchs = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    take_steps(model, optimizer)
    take_steps(reference, torchs)
    for ours, parameter in zip(model.parameters(), reference.parameters(), strict=True):
        if ours in mine:
            # a rounding of bf16 in a step of at most about 0.01
            torch.testing.assert_close(ours, parameter, rtol=0, atol=1e-4)


def test_an_update_of_muon_is_as_long_as_one_of_adamw():
    for shape in ((64, 64), (32, 256)):
        update = orthogonalize(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
        length = muon.UPDATE_RMS * max(shape) ** 0.5 * update.square().mean().sqrt()
        assert 0.15 < length < 0.25


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_matrices_are_the_weights_of_linear_layers_inside(tied):
    model = build(tie_word_embeddings=tied)
    chosen = hidden_matrices(model)
    names = {name for name, parameter in model.named_parameters() if parameter in chosen}
    inside = {f"attn.{x}_proj.weight" for x in "qkvgo"} | {"attn.gk_proj.0.weight"}
    inside |= {f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")} | {"attn.gk_proj.1.weight"}
    assert names == {f"model.layers.{i}.{name}" for i in (0, 1) for name in inside}


@pytest.mark.parametrize("name", NAMES)
def test_found_inf_leaves_weights_and_state_bit_identical(name):
    model = build()
    optimizer: Any = build_optimizer(ONE_DEVICE, model, OptimizerConfig(name=name, **OPTIONS))
    optimizer.found_inf = torch.zeros(())
    take_steps(model, optimizer)
    before = snapshot(model, optimizer)
    optimizer.found_inf = torch.ones(())
    take_steps(model, optimizer, scale=float("nan"))
    assert all(map(torch.equal, snapshot(model, optimizer), before))
    optimizer.found_inf = torch.zeros(())
    take_steps(model, optimizer)
    assert not torch.equal(snapshot(model, optimizer)[0], before[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_goes_around(name):
    config = OptimizerConfig(name=name, **OPTIONS)
    model, second = build(), build()
    optimizer, other = (build_optimizer(ONE_DEVICE, m, config) for m in (model, second))
    take_steps(model, optimizer)
    second.load_state_dict(model.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    take_steps(model, optimizer)
    take_steps(second, other)
    assert all(map(torch.equal, snapshot(model, optimizer), snapshot(second, other)))


def test_gradients_of_a_backward_pass_never_exist_together():
    model = build()
    config = OptimizerConfig(early_step_in_backward=True)
    optimizer = build_optimizer(ONE_DEVICE, model, config)
    assert isinstance(optimizer, OptimizerInBackward)
    optimizer.register_hooks(torch.device("cpu"))
    alive: list[int] = []
    for parameter in model.parameters():
        parameter.register_hook(
            lambda gradient: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    before = [p.clone() for p in weights(model)]
    ids = torch.arange(40).view(1, 40)
    model(input_ids=ids, labels=ids).loss.backward()
    assert len(alive) == len(before)
    assert set(alive) == {0}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(map(torch.equal, weights(model), before))


DDP = engine(DistributedType.MULTI_GPU, num_processes=2)
DEEPSPEED = engine(DistributedType.DEEPSPEED, num_processes=2)
TENSOR = engine(
    DistributedType.FSDP, num_processes=4, is_fsdp2=True,
    parallelism_config=SimpleNamespace(tp_size=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("accelerator", "options", "named"),
    [
        (DEEPSPEED, {"name": "Muon"}, "Muon needs whole matrices"),
        (DEEPSPEED, {"early_step_in_backward": True}, "DeepSpeed takes the optimizer's step"),
        (DDP, {"early_step_in_backward": True}, "DDP averages the gradients only after"),
        (TENSOR, {"early_step_in_backward": True}, "tensor parallelism completes some"),
    ],
)
def test_engines_that_would_be_wrong_are_refused(accelerator, options, named):
    with pytest.raises(UserError, match=named) as raised:
        check_optimizer_support(accelerator, OptimizerConfig(**options))
    assert "fsdp2.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"optimizer.name": "Muon"}, "--optimizer.name AdamW"),
        ({"training.max_norm": 1}, "--training.max_norm 0"),
        ({"training.skip_nan_inf": True}, "--training.no_skip_nan_inf"),
        ({"training.gradient_accumulation_steps": 2}, "--training.gradient_accumulation_steps 1"),
    ],
)
def test_stepping_in_backward_names_what_it_needs(flags, change, remedy):
    parse(flags(**EARLY))
    with pytest.raises(ConfigError) as raised:
        parse(flags(**EARLY | change))
    assert f"Add {remedy}, or remove optimizer.early_step_in_backward" in str(raised.value)


def curve(run_folder) -> list[float]:
    return [
        record[key]
        for record in read_records(run_folder)
        for key in ("train/loss", "optimizer/grad_norm")
    ]


def resume(run_folder, again) -> None:
    """Starts a finished run again from its checkpoint of step 4."""
    last = max((run_folder / "checkpoint").iterdir())
    assert last.name != "step-4"
    shutil.rmtree(last)
    (run_folder / "hf/model.safetensors").unlink()
    again()
    assert "continuing after step 4" in (run_folder / "log.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on_equals_one_left_alone_to_the_bit(train_here, flags, tmp_path, name):
    argv = flags(**{"optimizer.name": name, "optimizer.lr": 0.01, "evaluation.sample_tokens": 0})
    train_here(argv)
    records, model = curve(tmp_path / "run"), load_file(tmp_path / "run/hf/model.safetensors")
    assert records[-2] < records[0] - 0.1
    resume(tmp_path / "run", lambda: train_here(argv))
    again = load_file(tmp_path / "run/hf/model.safetensors")
    assert curve(tmp_path / "run") == records
    assert all(torch.equal(again[key], model[key]) for key in model)


@pytest.mark.covers_option("optimizer.early_step_in_backward")
@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_stepping_in_backward_changes_no_bit_and_no_checkpoint(train_here, flags, tmp_path, name):
    """Of losses and weights; a checkpoint of either goes on under the other."""
    options = {**EARLY, "optimizer.name": name, "evaluation.sample_tokens": 0}
    early = flags(**options)
    late = flags(
        **options
        | {"optimizer.early_step_in_backward": False, "job.dump_folder": tmp_path / "late"}
    )
    for argv in (early, late):
        train_here(argv)
    models = [load_file(tmp_path / run / "hf/model.safetensors") for run in ("run", "late")]
    # squares of the norm are summed up in another order
    assert curve(tmp_path / "run")[::2] == curve(tmp_path / "late")[::2]
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "late"), rel=1e-6)
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    shutil.rmtree(tmp_path / "run/checkpoint")
    shutil.copytree(tmp_path / "late/checkpoint", tmp_path / "run/checkpoint")
    resume(tmp_path / "run", lambda: train_here(early))
    again = load_file(tmp_path / "run/hf/model.safetensors")
    assert all(torch.equal(again[key], models[1][key]) for key in again)


@pytest.fixture(scope="module")
def ragged(corpus, tmp_path_factory):
    """`ragged(folder, processes, **changes)`: flags of a run of the same rows for any processes.

    Its model has parameters that FSDP2 leaves whole, A_log and dt_bias.
    """
    model = tmp_path_factory.mktemp("model") / "gated_deltanet.json"
    model.write_text(json.dumps(TINY_GLA | {"model_type": "gated_deltanet", "head_dim": 16}))

    def build_flags(folder, processes: int, **changes) -> list[str]:
        options = {
            "job.dump_folder": folder,
            "model.config": model,
            "model.tokenizer_path": "byte",
            "training.dataset": corpus,
            "training.seq_len": 64,
            "training.context_len": 24,
            "training.varlen": True,
            "training.batch_size": 8 // processes,
            "training.steps": 6,
            "training.warmup_steps": 2,
            "training.num_workers": 0,
            "metrics.log_freq": 1,
            "checkpoint.interval": 4,
            "evaluation.sample_tokens": 0,
            **changes,
        }
        return [f"--{name}={value}" for name, value in options.items()]

    return build_flags


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("config", "processes", "tensor_degree"), [("ddp", 2, 1), ("fsdp2", 2, 1), ("fsdp2_tp", 4, 2)]
)
def test_muon_of_several_processes_is_that_of_one(
    train_here, ragged, tmp_path, config, processes, tensor_degree
):
    options = {"optimizer.name": "Muon", "optimizer.lr": 0.003}
    train_here(ragged(tmp_path / "one", 1, **options))
    degree = {"training.tensor_parallel_degree": tensor_degree}
    argv = ragged(tmp_path / "more", processes // tensor_degree, **options, **degree)
    launch(argv, config=config, processes=processes)
    expected = pytest.approx(curve(tmp_path / "one"), rel=1e-5)
    assert curve(tmp_path / "more") == expected
    # the momentum of matrices is put together from the shares of the ranks
    resume(tmp_path / "more", lambda: train_here(ragged(tmp_path / "more", 1, **options)))
    assert curve(tmp_path / "more") == expected


@pytest.mark.distributed
def test_stepping_in_backward_of_shards_is_that_of_one_process(train_here, ragged, tmp_path):
    late = EARLY | {"optimizer.early_step_in_backward": False}
    train_here(ragged(tmp_path / "one", 1, **late))
    launch(ragged(tmp_path / "two", 2, **EARLY), config="fsdp2", processes=2)
    expected = pytest.approx(curve(tmp_path / "one"), rel=1e-5)
    assert curve(tmp_path / "two") == expected
    resume(tmp_path / "two", lambda: train_here(ragged(tmp_path / "two", 1, **late)))
    assert curve(tmp_path / "two") == expected
