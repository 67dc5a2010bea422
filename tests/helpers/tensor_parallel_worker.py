"""What the peers of `test_tensor_parallel` run: every case whole, then split, in one process each.

    python tests/helpers/tensor_parallel_worker.py FOLDER

Imports once and forks two peers, the first of which writes `FOLDER/results.json`, an object of what
each case showed.
"""

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
WHOLE_LOSS = ("gla, grouped, tied", "delta_net, odd vocabulary", "kda")
"""The cases that are also tried without loss parallelism, and with rows that are not packed."""
CU_SEQLENS = (0, 13, 70, 71, 96)
STEPS = 3


def build(name: str) -> Any:
    """The model of a case, with weights that no initialization leaves at 0 or 1."""
    from transformers import AutoConfig

    from flame_accel.models.instantiate import instantiate
    from flame_accel.models.norms import register_norm_variants

    register_norm_variants()
    config = AutoConfig.for_model(name.split(",")[0], **SHAPE | CASES[name])
    model = instantiate(config, seed=1)
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
    from flame_accel.parallel import clip_gradients
    from flame_accel.training.adam import AdamW

    optimizer = AdamW(parameter_groups(model, 0.1), lr=1e-3)
    here: Any = SimpleNamespace(device=torch.device("cpu"))
    curve = []
    for step in range(STEPS):
        inputs = batch(step, packed=packed)
        targets = int((inputs["labels"][:, 1:] != -100).sum())
        # as with two micro-batches: the gradients of both halves of a step add up
        for _ in range(2):
            loss = model(**inputs, num_items_in_batch=torch.tensor(2 * targets)).loss
            loss.backward()
        norm = clip_gradients(here, model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve += [2 * loss.item(), norm.item()]
    return curve


def look(model: Any) -> tuple[Tensor, float]:
    """Logits and mean loss without gradients."""
    inputs = batch(STEPS, packed=False)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        loss = model(**inputs, use_cache=False).loss
    model.train()
    return logits, loss.item()


def build_split(name: str, mesh: DeviceMesh, *, loss_parallel: bool) -> Any:
    """The model of a case, split."""
    from flame_accel.parallel.tensor.apply import parallelize_over_mesh
    from flame_accel.parallel.tensor.regions import find_regions

    model = build(name)
    device = torch.device("cpu")
    parallelize_over_mesh(
        mesh, model, find_regions(model), device=device, loss_parallel=loss_parallel
    )
    return model


def marks(model: nn.Module) -> dict[str, Any]:
    """Names, sizes and marks of parameters."""
    return {
        # torch's own mark of a parameter that is of a subclass of tensors
        name: (tuple(parameter.shape), {**vars(parameter), "_is_param": True})
        for name, parameter in model.named_parameters()
    }


def unequal_copies(model: nn.Module) -> list[str]:
    """Parameters that peers have whole, and not with the same bits."""
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
    """A case whole and split: its curves, logits, weights and what else must be the same."""
    whole, parts = build(name), build_split(name, mesh, loss_parallel=loss_parallel)
    same_names = marks(whole) == marks(parts)
    curves = [train(model, packed=loss_parallel) for model in (whole, parts)]
    (logits, loss), (split_logits, split_loss) = look(whole), look(parts)
    seen: list[Any] = [None] * mesh.size()
    dist.all_gather_object(seen, curves[1])
    pairs = zip(whole.parameters(), parts.parameters(), strict=True)
    return {
        "whole": [*curves[0], loss],
        "split": [*curves[1], split_loss],
        "peers agree": all(curve == curves[1] for curve in seen),
        "logits": (logits - split_logits).abs().max().item(),
        "weights": max((p - q.full_tensor()).abs().max().item() for p, q in pairs),
        "same names": same_names,
        "unequal copies": unequal_copies(parts),
        "elements": sum(q._local_tensor.numel() for q in parts.parameters())
        / sum(p.numel() for p in whole.parameters()),
    }


def run_peer(rank: int, peers: int, folder: Path) -> None:
    """All cases."""
    from flame_accel.parallel.tensor import loss

    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=peers,
        # a peer that fails must not keep the other waiting
        timeout=timedelta(seconds=120),
    )
    # a few positions at a time
    loss.CHUNK_LOGITS = 129 * 20
    mesh = init_device_mesh("cpu", (peers,), mesh_dim_names=("tp",))
    shown = {
        f"{name}, {'loss parallel' if loss_parallel else 'whole loss'}": compare(
            name, mesh, loss_parallel=loss_parallel
        )
        for name in CASES
        for loss_parallel in ((True, False) if name in WHOLE_LOSS else (True,))
    }
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(shown))
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Two peers."""
    kernels.install("torch")
    import fla  # noqa: F401

    import flame_accel.parallel  # noqa: F401

    fork = multiprocessing.get_context("fork")
    peers = [fork.Process(target=run_peer, args=(rank, 2, folder)) for rank in range(2)]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join()
    sys.exit(max(abs(peer.exitcode or 0) for peer in peers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
