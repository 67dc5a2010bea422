"""Losses of this project's run and of a plain loop: same weights, documents and learning rates.

`ours` is the loop of `flame_accel.train` with its defaults, `plain` what a user of fla writes (see
`variants.py`). Whether the faster arithmetic learns as much is the difference of their mean losses
over the last steps; the norms of gradients before clipping are kept beside them. How far equally
good runs are apart is seen from `perturbed` and `ours_perturbed`: the same loops from weights of
which each is changed by a millionth. `ours_fp32_residual` tells what the residual stream in bf16
does. `gradient_norms.py` compares the gradient norms of both at the same weights.

    python benchmarks/train_tokenizer.py TOKENIZER
    python benchmarks/loss_curves.py --tokenizer TOKENIZER --models gla --output losses.json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from throughput import PACKAGES, ROOT, SHAPES, save_result
from variants import Case, OursVariant, PlainVariant, read_batches

from flame_accel.config import Config
from flame_accel.kernels.fused.replace import fused_kernels_disabled
from flame_accel.training import learning_rate

RUNS = ("ours", "plain", "perturbed", "ours_perturbed", "ours_fp32_residual")
FIRST = 4
"""Batches whose losses are compared before the first step."""


class Curves(NamedTuple):
    """Of one run, step by step."""

    losses: list[float]
    gradient_norms: list[float]
    """Before clipping."""


def main() -> None:
    """Measures one model after the other, and writes and prints the results after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--models", nargs="+", default=["gla"])
    parser.add_argument("--size", default="340M", help="as in configs/MODEL_SIZE")
    parser.add_argument("--shape", choices=SHAPES, default="ragged-32768")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--last", type=int, default=50, help="steps that are averaged")
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS[:3])
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is added to")
    arguments = parser.parse_args()
    # what `accelerate launch` sets
    os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "bf16")
    for model in arguments.models:
        for result in measure_model(arguments, model):
            save_result(arguments.output, result)
            means = {name: x for name, x in result.items() if name.endswith("mean_loss")}
            print(model, means, result["differences"], flush=True)


def measure_model(arguments: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    """Trains a model several times from the same weights; the result so far after each run."""
    from importlib.metadata import version

    from device_measures import device_name

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
    changes = {"training.warmup_steps": arguments.warmup_steps}
    ours = OursVariant(case, **changes)
    weights = {name: x.clone() for name, x in ours.components.model.state_dict().items()}
    config, batches = ours.config, read_batches(case, number=arguments.steps)
    del ours
    curves: dict[str, Curves] = {}
    first_losses = first_losses_in_fp32_and_bf16(case, weights, batches[:FIRST])
    print(f"{model}: {first_losses}", flush=True)
    for run in arguments.runs:
        begin = time.monotonic()
        start = perturb(weights) if run.endswith("perturbed") else weights
        if run.startswith("ours"):
            fp32 = {"training.residual_dtype": "float32"} if run.endswith("fp32_residual") else {}
            curves[run] = train_ours(case, start, arguments.steps, changes | fp32)
        else:
            curves[run] = train_plain(case, start, batches, config)
        mean = statistics.fmean(curves[run].losses[-arguments.last :])
        seconds = time.monotonic() - begin
        print(f"{model}: {run} {mean:.5f}, took {seconds:.0f} s", flush=True)
        means = {
            name: statistics.fmean(run.losses[-arguments.last :]) for name, run in curves.items()
        }
        yield {
            "model": model,
            "size": arguments.size,
            "shape": arguments.shape,
            "gpu": device_name(),
            "steps": arguments.steps,
            "last": arguments.last,
            **{f"{name}_mean_loss": round(mean, 5) for name, mean in means.items()},
            "differences": {
                name: round(x - means["plain"], 5) for name, x in means.items() if "plain" in means
            },
            "first_losses": first_losses,
            "largest_gradient_norms": {
                name: [round(x, 1) for x in sorted(run.gradient_norms)[-5:]]
                for name, run in curves.items()
            },
            "losses": {name: [round(x, 5) for x in run.losses] for name, run in curves.items()},
            "gradient_norms": {
                name: [round(x, 3) for x in run.gradient_norms] for name, run in curves.items()
            },
            "versions": {name: version(name) for name in PACKAGES},
        }


def first_losses_in_fp32_and_bf16(
    case: Case, weights: dict[str, torch.Tensor], batches: list[dict[str, torch.Tensor]]
) -> dict[str, list[float]]:
    """Losses of the plain model before it learns, without autocast and with it."""
    plain = PlainVariant(case)
    plain.model.load_state_dict(weights)
    found: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with torch.no_grad(), fused_kernels_disabled():
        for batch in batches:
            inputs = {name: x.to(plain.device) for name, x in batch.items()}
            for name, values in found.items():
                with torch.autocast(plain.device, torch.bfloat16, enabled=name == "bf16"):
                    values.append(round(plain.model(**inputs).loss.item(), 5))
    return found


def train_ours(
    case: Case, weights: dict[str, torch.Tensor], steps: int, options: dict[str, object]
) -> Curves:
    """Our run."""
    ours = OursVariant(case, **options)
    ours.components.model.load_state_dict(weights)
    ours.run_steps(steps, lambda: None)
    lines = (Path(ours.config.job.dump_folder) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return Curves(
        [record["train/loss"] for record in records],
        [record["optimizer/grad_norm"] for record in records],
    )


def train_plain(
    case: Case,
    weights: dict[str, torch.Tensor],
    batches: list[dict[str, torch.Tensor]],
    config: Config,
) -> Curves:
    """The plain loop, with the learning rates of our run."""
    plain = PlainVariant(case)
    plain.model.load_state_dict(weights)
    plain.batches = iter(batches)
    losses, norms = [], []
    for step in range(len(batches)):
        for group in plain.optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                config.optimizer,
                total_steps=len(batches),
                warmup_steps=config.training.warmup_steps,
            )
        plain.run_steps(1, lambda: None)
        losses.append(plain.last_loss)
        norms.append(plain.last_gradient_norm)
    return Curves(torch.stack(losses).tolist(), torch.stack(norms).tolist())


def perturb(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight times 1 +- 1e-6 or so."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: x * (1 + 1e-6 * torch.randn(x.shape, generator=generator).to(x.device))
        if x.is_floating_point()
        else x
        for name, x in weights.items()
    }


if __name__ == "__main__":
    main()
