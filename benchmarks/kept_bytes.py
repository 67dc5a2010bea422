"""Bytes that a model keeps for its backward pass, per token; runs on a CPU, at any size.

    python benchmarks/kept_bytes.py --models mamba2 rwkv7 kda gla --size 340M

Nothing is computed by a kernel: each launch is left out, so that tensors have their sizes and no
meaning, and storages that autograd saves are counted, each once, without weights and their casts.
Training under bf16 autocast with a bf16 residual stream ("plain": fp32). Per layer is the
difference of models of three and of two layers; all sizes are differences of two lengths.
"""

import argparse
import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from triton.runtime.jit import KernelInterface

import flame_accel  # noqa: F401  # registers model types
from flame_accel import kernels
from flame_accel.kernels.fused.replace import fused_kernels_disabled

LENGTHS = (256, 512)
LAYERS = (2, 3)
PATHS: tuple[tuple[str, bool, bool, Any], ...] = (
    ("plain", False, False, "always"),
    ("bf16 stream, fla's kernels", True, False, "always"),
    ("ours", True, True, "always"),
    ("ours, model.recompute_operators never", True, True, "never"),
)
"""Name, whether the residual stream is in bf16, whether our kernels run, and that option."""


def install_kernels_that_compute_nothing() -> None:
    """Fla's Triton path and our fused kernels, on a CPU; nothing is launched from now on."""
    kernels.uninstall()
    # the package has a function of that name
    module: Any = importlib.import_module("flame_accel.kernels.install")
    module.triton_has_device = lambda: True
    interface: Any = KernelInterface
    interface.__getitem__ = lambda kernel, grid: lambda *args, **kwargs: None
    kernels.install("triton")
    kernels.install_fused_kernels()


@contextlib.contextmanager
def count_saved_storages(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Yields bytes of storages by address, of all tensors that are saved in the block."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            # an address that is free again would be counted once for two tensors
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield sizes


def bytes_kept(config: Any, layers: int, tokens: int, *, bf16_stream: bool) -> int:
    """Bytes of activations that a forward pass of a packed row keeps."""
    config.num_hidden_layers = layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).train()
    # whatever memory holds: initial weights would take minutes
    model.to_empty(device="cpu")
    embeddings = model.get_input_embeddings()
    if bf16_stream:
        embeddings.register_forward_hook(lambda module, inputs, output: output.bfloat16())
    ids = torch.zeros(1, tokens, dtype=torch.long)
    boundaries = torch.tensor([0, tokens // 2, tokens], dtype=torch.int32)
    body: Any = model.base_model
    with count_saved_storages(model) as sizes, torch.autocast("cpu", torch.bfloat16):
        hidden = body(input_ids=ids, cu_seqlens=boundaries, use_cache=False)[0]
    assert hidden.requires_grad
    return sum(sizes.values())


def bytes_per_token(config: Any, layers: int, *, bf16_stream: bool) -> float:
    """Of a model with that number of layers, without its head and loss."""
    short, long = (bytes_kept(config, layers, t, bf16_stream=bf16_stream) for t in LENGTHS)
    return (long - short) / (LENGTHS[1] - LENGTHS[0])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mamba2", "rwkv7"])
    parser.add_argument("--size", default="340M")
    options = parser.parse_args()
    install_kernels_that_compute_nothing()
    print("| model | path | bytes a token and layer | layers | MB a token, without head |")
    print("|---|---|---|---|---|")
    for name in options.models:
        config: Any = AutoConfig.from_pretrained(f"configs/{name}_{options.size}.json")
        layers = config.num_hidden_layers
        for path, bf16_stream, fused, recompute in PATHS:
            kernels.choose_operator_recompute(recompute)
            with contextlib.nullcontext() if fused else fused_kernels_disabled():
                two, three = (bytes_per_token(config, n, bf16_stream=bf16_stream) for n in LAYERS)
            each = three - two
            whole = (two + (layers - LAYERS[0]) * each) / 1e6
            print(f"| {name} | {path} | {each:,.0f} | {layers} | {whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
