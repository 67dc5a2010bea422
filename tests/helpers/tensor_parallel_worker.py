"""What the TP ranks of `tensor/test_apply` run: every case with the full model, then sharded.

    python tests/helpers/tensor_parallel_worker.py FOLDER

Imports once and forks two ranks, the first of which writes `FOLDER/results.json`: an object with
the results of each case.
"""

import importlib
import json
import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from flame_accel import kernels

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 258, "intermediate_size": 48}
CASES: dict[str, dict[str, Any]] = {
    "transformer": {"num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "qk_norm": True},
    "transformer, attention over depth": {"num_heads": 2, "attnres_block_size": 2},
    "gla": {"num_heads": 4, "use_short_conv": True},
    "gla, grouped, tied": {"num_heads": 4, "num_kv_heads": 2, "tie_word_embeddings": True},
    "gla, hybrid, unfused": {
        "num_heads": 2,
        "attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2},
        "fuse_norm": False,
        "fuse_swiglu": False,
    },
    "delta_net": {"num_heads": 4},
    "delta_net, odd vocabulary": {
        **{"num_heads": 2, "use_gate": True, "pad_token_id": 256, "vocab_size": 257},
        **{"fuse_cross_entropy": False, "fuse_linear_cross_entropy": False},
    },
    "gated_deltanet": {"num_heads": 2, "head_dim": 8, "num_v_heads": 4},
    "kda": {"num_heads": 2, "head_dim": 8},
    "retnet": {"num_heads": 4},
    "gla_layernorm": {"num_heads": 2, "num_hidden_layers": 1},
    "hgrn2": {"expand_ratio": 8, "use_lower_bound": True, "use_short_conv": True},
}
GATHERED_LOSS = ("gla, grouped, tied", "delta_net, odd vocabulary", "kda")
"""The cases that also run without loss parallelism, and with rows that are not packed."""
CU_SEQLENS = (0, 13, 70, 71, 96)
STEPS = 3


def build(name: str) -> Any:
    """The model of a case, with weights that no initialization leaves at 0 or 1."""
    from transformers import AutoConfig

    from flame_accel.models.instantiate import instantiate_on_default_device
    from flame_accel.models.norms import register_norm_variants_of_fla_and_llama

    register_norm_variants_of_fla_and_llama()
    config = AutoConfig.for_model(name.split(",")[0], **SHAPE | CASES[name])
    model = instantiate_on_default_device(config, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def batch(step: int, *, packed: bool) -> dict[str, Any]:
    """Ragged documents in one row, or two rows; about a third of the targets is masked."""
    generator = torch.Generator().manual_seed(step)
    shape = (1, CU_SEQLENS[-1]) if packed else (2, CU_SEQLENS[-1] // 2)
    ids = torch.randint(0, 257, shape, generator=generator)
    labels = ids.masked_fill(torch.rand(shape, generator=generator) < 0.3, -100)
    documents = {"cu_seqlens": torch.tensor(CU_SEQLENS)} if packed else {}
    return {"input_ids": ids, "labels": labels, **documents}


def train(model: Any, *, packed: bool) -> list[float]:
    """Loss and gradient norm of each step."""
    from flame_accel.models import parameter_groups
    from flame_accel.parallel import clip_gradients_and_get_norm
    from flame_accel.training.adam import AdamWOnLocalShards

    optimizer = AdamWOnLocalShards(parameter_groups(model, 0.1), lr=1e-3)
    here: Any = SimpleNamespace(device=torch.device("cpu"))
    curve = []
    for step in range(STEPS):
        inputs = batch(step, packed=packed)
        targets = int((inputs["labels"][:, 1:] != -100).sum())
        # as with two micro-batches: the gradients of both halves of a step add up
        for _ in range(2):
            loss = model(**inputs, num_items_in_batch=torch.tensor(2 * targets)).loss
            loss.backward()
        norm = clip_gradients_and_get_norm(here, model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve += [2 * loss.item(), norm.item()]
    return curve


def evaluate(model: Any) -> tuple[Tensor, float]:
    """Logits and mean loss without gradients."""
    inputs = batch(STEPS, packed=False)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        loss = model(**inputs, use_cache=False).loss
    model.train()
    return logits, loss.item()


def build_sharded(name: str, mesh: DeviceMesh, *, loss_parallel: bool) -> Any:
    """The model of a case, sharded over a TP mesh."""
    from flame_accel.parallel.tensor.apply import shard_model_over_mesh
    from flame_accel.parallel.tensor.regions import match_regions_with_plans

    model = build(name)
    device = torch.device("cpu")
    shard_model_over_mesh(
        mesh, model, match_regions_with_plans(model), device=device, loss_parallel=loss_parallel
    )
    return model


def parameter_attributes(model: nn.Module) -> dict[str, Any]:
    """Names, full shapes and attributes of parameters."""
    return {
        # torch's own attribute of a parameter that is a subclass of Tensor
        name: (tuple(parameter.shape), {**vars(parameter), "_is_param": True})
        for name, parameter in model.named_parameters()
    }


def find_unequal_copies(model: nn.Module) -> list[str]:
    """Names of replicated parameters whose copies do not have the same bits."""
    names = []
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        if parameter.placements[0].is_replicate():
            mine = parameter.to_local().detach()
            copies = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(copies, mine)
            if not all(torch.equal(copy, mine) for copy in copies):
                names.append(name)
    return names


def compare(name: str, mesh: DeviceMesh, *, loss_parallel: bool) -> dict[str, Any]:
    """A case with full and sharded model: curves, logits, weights, and what else must agree."""
    full, sharded = build(name), build_sharded(name, mesh, loss_parallel=loss_parallel)
    same_names = parameter_attributes(full) == parameter_attributes(sharded)
    curves = [train(model, packed=loss_parallel) for model in (full, sharded)]
    (logits, loss), (sharded_logits, sharded_loss) = evaluate(full), evaluate(sharded)
    curves_of_ranks: list[Any] = [None] * mesh.size()
    dist.all_gather_object(curves_of_ranks, curves[1])
    pairs = zip(full.parameters(), sharded.parameters(), strict=True)
    return {
        "full": [*curves[0], loss],
        "sharded": [*curves[1], sharded_loss],
        "ranks agree": all(curve == curves[1] for curve in curves_of_ranks),
        "logits": (logits - sharded_logits).abs().max().item(),
        "weights": max((p - q.full_tensor()).abs().max().item() for p, q in pairs),
        "same names": same_names,
        "unequal copies": find_unequal_copies(sharded),
        "local elements": sum(q._local_tensor.numel() for q in sharded.parameters())
        / sum(p.numel() for p in full.parameters()),
    }


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    """Runs all cases on one rank; rank 0 writes the results."""
    from flame_accel.parallel.tensor import loss

    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=world_size,
        # a rank that fails must not keep the other waiting
        timeout=timedelta(seconds=120),
    )
    # a few positions at a time
    loss.CHUNK_LOGITS = 129 * 20
    mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("tp",))
    results = {
        f"{name}, {'loss parallel' if loss_parallel else 'gathered loss'}": compare(
            name, mesh, loss_parallel=loss_parallel
        )
        for name in CASES
        for loss_parallel in ((True, False) if name in GATHERED_LOSS else (True,))
    }
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Runs two ranks."""
    kernels.install("torch")
    importlib.import_module("fla")

    importlib.import_module("flame_accel.parallel")

    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_rank, args=(rank, 2, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
