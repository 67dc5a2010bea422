"""Losses of this project's run and of a plain loop: same weights, documents and learning rates.

`ours` is the loop of `flame_accel.train` with its defaults, `plain` what a user of fla writes (see
`variants.py`). Whether the faster arithmetic learns as much is the difference of their mean losses
over the last steps.

    python benchmarks/train_tokenizer.py TOKENIZER
    python benchmarks/loss_curves.py --tokenizer TOKENIZER --models gla --output losses.json
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from throughput import PACKAGES, ROOT, SHAPES, save_result
from variants import Case, OursVariant, PlainVariant, read_batches

from flame_accel.training import learning_rate


def main() -> None:
    """Measures one model after the other, and writes and prints the result of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--models", nargs="+", default=["gla"])
    parser.add_argument("--size", default="340M", help="as in configs/MODEL_SIZE")
    parser.add_argument("--shape", choices=SHAPES, default="ragged-32768")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--last", type=int, default=50, help="steps that are averaged")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is added to")
    arguments = parser.parse_args()
    # what `accelerate launch` sets
    os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "bf16")
    for model in arguments.models:
        result = measure_model(arguments, model)
        save_result(arguments.output, result)
        print({name: value for name, value in result.items() if name != "losses"}, flush=True)


def measure_model(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Trains a model twice from the same weights."""
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
    ours = OursVariant(case)
    weights = {name: x.clone() for name, x in ours.components.model.state_dict().items()}
    begin = time.monotonic()
    ours.run_steps(arguments.steps, lambda: None)
    print(f"{model}: ours took {time.monotonic() - begin:.0f} s", flush=True)
    records = (Path(ours.config.job.dump_folder) / "metrics.jsonl").read_text().splitlines()
    losses = {"ours": [json.loads(line)["train/loss"] for line in records]}
    optimizer, warmup_steps = ours.config.optimizer, ours.config.training.warmup_steps
    del ours
    plain = PlainVariant(case)
    plain.model.load_state_dict(weights)
    plain.batches = iter(read_batches(case, number=arguments.steps))
    losses["plain"] = []
    for step in range(arguments.steps):
        for group in plain.optimizer.param_groups:
            group["lr"] = learning_rate(
                step, optimizer, total_steps=arguments.steps, warmup_steps=warmup_steps
            )
        plain.run_steps(1, lambda: None)
        losses["plain"].append(plain.last_loss)
    losses["plain"] = torch.stack(losses["plain"]).tolist()
    means = {name: statistics.fmean(values[-arguments.last :]) for name, values in losses.items()}
    return {
        "model": model,
        "size": arguments.size,
        "shape": arguments.shape,
        "gpu": device_name(),
        "steps": arguments.steps,
        "last": arguments.last,
        **{f"{name}_mean_loss": round(mean, 5) for name, mean in means.items()},
        "difference": round(means["ours"] - means["plain"], 5),
        "losses": {name: [round(x, 5) for x in values] for name, values in losses.items()},
        "versions": {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
