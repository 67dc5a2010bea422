"""Small programs that the ranks of FSDP2 run, for `test_fp32_parameters` and `test_float8`.

`python fsdp2_programs.py NAME [ARGUMENTS]` runs the function of that name and fails if it raises.
"""

import os
import sys
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import PreTrainedModel

from flame_accel import kernels
from flame_accel.checkpoint.hf_model import gather_full_weights_to_main
from flame_accel.config import CommConfig, Float8Config, OptimizerConfig, TrainingConfig
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device
from flame_accel.parallel import (
    all_gather_concatenated,
    average_fsdp2_ignored_gradients,
    build_accelerator,
    clip_gradients_and_get_norm,
    prepare_transformed_model_and_optimizer,
)
from flame_accel.parallel.float8 import check_float8_support, convert_to_float8
from flame_accel.parallel.fp32_parameters import (
    ignored_fp32_parameters,
    move_fp32_parameters_and_ignore_if_fsdp2,
)
from flame_accel.training import build_optimizer

STEPS, ROWS, TOKENS = 3, 4, 32
OPTIMIZER = OptimizerConfig(lr=1e-3)
NO_FLOAT8 = Float8Config()


def build(training: TrainingConfig, precision: str = "no") -> Accelerator:
    """The Accelerator of a launch, with the precision of its YAML."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    kernels.install()
    return build_accelerator(training, CommConfig(), run_folder=".")


def all_rows() -> Tensor:
    """Token ids of all steps [steps, rows, 1, tokens], the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (STEPS, ROWS, 1, TOKENS), generator=generator)


def mean_loss(model: nn.Module, row: Tensor) -> Tensor:
    """Nats per token of a row [1, tokens]."""
    return model(input_ids=row, labels=row).loss


def reference(model: PreTrainedModel) -> list[float]:
    """Losses and gradient norms of training on one process; updates the model in place."""
    single: Any = type("Single", (), {"device": torch.device("cpu"), "num_processes": 1})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    curve = []
    for rows in all_rows():
        losses = [mean_loss(model, row) for row in rows]
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = clip_gradients_and_get_norm(single, model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve += [loss.item(), norm.item()]
    return curve


def train(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> list[float]:
    """Losses and gradient norms of the same training, distributed over the ranks."""
    rows_per_rank = ROWS // accelerator.num_processes
    curve = []
    for rows in all_rows():
        losses = []
        for row in rows[accelerator.process_index * rows_per_rank :][:rows_per_rank]:
            with accelerator.accumulate(model):
                loss = mean_loss(model, row)
                accelerator.backward(loss)
            losses.append(loss.detach())
        average_fsdp2_ignored_gradients(accelerator)
        norm = clip_gradients_and_get_norm(accelerator, model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = all_gather_concatenated(accelerator, torch.stack(losses)).mean()
        curve += [loss.item(), norm.item()]
    return curve


def prepared(
    accelerator: Accelerator,
    model: PreTrainedModel,
    training: TrainingConfig,
    float8: Float8Config = NO_FLOAT8,
) -> tuple[Any, Any]:
    """The model and its optimizer, prepared as in a run."""
    move_fp32_parameters_and_ignore_if_fsdp2(accelerator, model)
    plugin: Any = accelerator.state.fsdp_plugin
    # accelerate keeps the classes of the previous model's blocks
    plugin.transformer_cls_names_to_wrap = None
    config = OptimizerConfig(lr=OPTIMIZER.lr, weight_decay=0.0)
    optimizer = build_optimizer(accelerator, model, config)
    return prepare_transformed_model_and_optimizer(accelerator, model, optimizer, training, float8)


def equals_one_process(*model_types: str) -> None:
    """Sharded training of models with ignored parameters equals training on one process."""
    world = int(os.environ["WORLD_SIZE"])
    training = TrainingConfig(gradient_accumulation_steps=ROWS // world)
    accelerator = build(training)
    for model_type in model_types:
        alone = instantiate_on_default_device(tiny_config(model_type), seed=0)
        expected = reference(alone)
        model, optimizer = prepared(
            accelerator, instantiate_on_default_device(tiny_config(model_type), seed=0), training
        )
        ignored = ignored_fp32_parameters(accelerator)
        assert ignored and not any(isinstance(p, DTensor) for p in ignored)
        torch.testing.assert_close(
            train(accelerator, model, optimizer), expected, rtol=1e-5, atol=0
        )
        moved = {id(p): name for name, p in model.named_parameters()}
        for parameter in ignored:
            other = alone.get_parameter(moved[id(parameter)])
            torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)
            copies = all_gather_concatenated(accelerator, parameter.detach().flatten()[:1])
            assert (copies == copies[0]).all()


def stays_exact_in_bf16() -> None:
    """With weights in bf16 the decays keep their fp32 values."""
    training = TrainingConfig(gradient_accumulation_steps=1)
    accelerator = build(training, "bf16")
    model = instantiate_on_default_device(tiny_config("kda"), seed=0)
    before = model.model.layers[0].attn.A_log.detach().clone()
    assert not torch.equal(before, before.bfloat16().float())
    model, optimizer = prepared(accelerator, model, training)
    mixer = model.model.layers[0].attn
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, *_: object) -> None:
        seen.update(A_log=mixer.A_log.detach().clone(), q_proj=mixer.q_proj.weight.detach())

    mixer.register_forward_pre_hook(look)
    accelerator.backward(mean_loss(model, all_rows()[0, accelerator.process_index]))
    assert seen["q_proj"].dtype is torch.bfloat16
    assert seen["A_log"].dtype is torch.float32
    assert torch.equal(seen["A_log"], before)
    own = mixer.A_log.grad.clone()
    assert own.dtype is torch.float32
    every = all_gather_concatenated(accelerator, own[None])
    assert not torch.equal(every[0], every[1])
    average_fsdp2_ignored_gradients(accelerator)
    torch.testing.assert_close(mixer.A_log.grad, every.mean(dim=0), rtol=1e-6, atol=0)
    optimizer.step()
    assert mixer.A_log.dtype is torch.float32
    assert not torch.equal(mixer.A_log, before)


def gathers_as_asked() -> None:
    """What is freed after its forward is gathered twice, what is kept once."""
    accelerator = build(TrainingConfig())
    plugin: Any = accelerator.state.fsdp_plugin
    found = {}
    for launched, asked in ((True, "default"), (True, "always"), (True, "never")):
        plugin.reshard_after_forward = launched
        training = TrainingConfig(fsdp_reshard_after_forward=asked)
        model, _ = prepared(
            accelerator, instantiate_on_default_device(tiny_config("gla"), seed=0), training
        )
        mean_loss(model, all_rows()[0, 0]).backward()
        mode = CommDebugMode()
        with mode:
            loss = mean_loss(model, all_rows()[0, 0])
            weights = [layer.attn.q_proj.weight for layer in model.model.layers]
            freed = [isinstance(weight, DTensor) for weight in weights]
            loss.backward()
        gathered = mode.get_comm_counts()[torch.ops.c10d._allgather_base_]
        found[asked] = (freed, gathered)
    # embeddings, two blocks, and the final norm with the head
    assert found == {
        "default": ([True, False], 6),
        "always": ([True, True], 8),
        "never": ([False, False], 4),
    }, found


def float8_gathers_alike() -> None:
    """Gathering in 8 bits changes nothing, since the products round the weights in the same way."""
    training = TrainingConfig(gradient_accumulation_steps=2)
    accelerator = build(training)
    results = []
    for gathers in (False, True):
        config = Float8Config(
            recipe_name="tensorwise",
            emulate=True,
            enable_fsdp_float8_all_gather=gathers,
            precompute_float8_dynamic_scale_for_fsdp=gathers,
        )
        model = instantiate_on_default_device(tiny_config("gla", hidden_size=128), seed=0)
        names = [name for name, _ in model.named_parameters()]
        check_float8_support(accelerator, config)
        convert_to_float8(model, config)
        model, optimizer = prepared(accelerator, model, training, config)
        local = model.model.layers[0].mlp.up_proj.weight._local_tensor
        assert (type(local) is not Tensor) is gathers
        curve = train(accelerator, model, optimizer)
        if gathers:
            assert local._precomputed_scale is not None
        assert [name for name, _ in model.named_parameters()] == names
        weights = gather_full_weights_to_main(accelerator, model, torch.float32)
        assert all(type(weight) is Tensor for weight in weights.values())
        assert all(weight.dtype is torch.float32 for weight in weights.values())
        results.append((curve, {name: weight.sum().item() for name, weight in weights.items()}))
    assert results[0] == results[1]


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
