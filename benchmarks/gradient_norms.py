"""Gradient norms at the same weights: of the plain loop in fp32 and in bf16, and of ours.

The plain loop trains, and before each of its updates the norm of its batch's gradient is computed
three times, at the weights that it has then: by fla's kernels in fp32 without autocast, by the
plain loop's bf16 autocast, and by ours with its defaults. So a large norm is told apart from a
large error: the first one all three have.

    python benchmarks/train_tokenizer.py TOKENIZER
    python benchmarks/gradient_norms.py --tokenizer TOKENIZER --output gradient_norms.json
"""

import argparse
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from device_measures import device_name
from throughput import PACKAGES, ROOT, SHAPES, save_result
from torch import Tensor, nn
from variants import MAX_NORM, Case, OursVariant, PlainVariant, read_batches

from flame_accel.kernels.fused.replace import fused_kernels_disabled
from flame_accel.training import learning_rate


def main() -> None:
    """Measures one model after the other, and writes and prints the result of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--models", nargs="+", default=["gla"])
    parser.add_argument("--size", default="340M", help="as in configs/MODEL_SIZE")
    parser.add_argument("--shape", choices=SHAPES, default="ragged-16384")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup_steps", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is added to")
    arguments = parser.parse_args()
    # what `accelerate launch` sets
    os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "bf16")
    for model in arguments.models:
        result = measure_model(arguments, model)
        save_result(arguments.output, result)
        for step, norms in enumerate(zip(*result["gradient_norms"].values(), strict=True), start=1):
            print(step, *norms, flush=True)


def measure_model(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Norms of each step, and the errors of both gradients in bf16 against the one in fp32."""
    shape = SHAPES[arguments.shape]
    case = Case(
        config=str(ROOT / f"configs/{model}_{arguments.size}.json"),
        tokenizer=arguments.tokenizer,
        rows=shape.rows,
        seq_len=shape.seq_len,
        varlen=shape.varlen,
        tune_kernels="never",
        log_freq=1,
    )
    ours = OursVariant(case, **{"training.warmup_steps": arguments.warmup_steps})
    our_model: Any = ours.components.model
    plain = PlainVariant(case)
    plain.model.load_state_dict(our_model.state_dict())
    norms: dict[str, list[float]] = {"plain_fp32": [], "plain": [], "ours": []}
    errors: dict[str, list[float]] = {"plain": [], "ours": []}
    for step, batch in enumerate(read_batches(case, number=arguments.steps)):
        inputs = {name: x.to(plain.device) for name, x in batch.items()}
        our_model.load_state_dict(plain.model.state_dict())
        found = {"ours": compute_gradient(our_model, inputs, bf16=True)}
        with fused_kernels_disabled():
            found["plain_fp32"] = compute_gradient(plain.model, inputs, bf16=False)
            found["plain"] = compute_gradient(plain.model, inputs, bf16=True)
        exact = found["plain_fp32"]
        for name, gradient in found.items():
            norms[name].append(round(gradient.norm().item(), 3))
            if name in errors:
                errors[name].append(round(((gradient - exact).norm() / exact.norm()).item(), 5))
        for group in plain.optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                ours.config.optimizer,
                total_steps=arguments.steps,
                warmup_steps=arguments.warmup_steps,
            )
        # the gradient of the plain loop in bf16 is the one that was computed last
        nn.utils.clip_grad_norm_(plain.model.parameters(), MAX_NORM)
        plain.optimizer.step()
    return {
        "model": model,
        "size": arguments.size,
        "shape": arguments.shape,
        "gpu": device_name(),
        "gradient_norms": norms,
        "relative_errors": errors,
        "versions": {name: version(name) for name in PACKAGES},
    }


def compute_gradient(model: nn.Module, inputs: dict[str, Tensor], *, bf16: bool) -> Tensor:
    """The gradient of the batch's mean loss, in one vector."""
    model.zero_grad()
    with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=bf16):
        loss = model(**inputs).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
