"""Prints what `plan` found out: as text for people, or as one JSON object."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from flame_accel.config import Config
from flame_accel.diagnosis.dry_run.plan import DeviceEstimate, Plan
from flame_accel.diagnosis.dry_run.run_time import GPU_MEMORY_GIB
from flame_accel.diagnosis.dry_run.schedule_plot import plot_rates
from flame_accel.training import describe_long_warmup

MEMORY_PARTS = {
    "weights": "weights, fp32",
    "optimizer": "optimizer states",
    "activations": "activations",
    "loss": "head and loss",
    "gradients_and_temporaries": "gradients, temporaries",
    "context": "CUDA context (not counted by PyTorch)",
}


def format_plan_as_json(plan: Plan, config: Config) -> str:
    """One object, for programs."""
    content: dict[str, Any] = {
        "options": plan.options,
        "model_type": plan.model_type,
        "parameters": {**plan.parameters, "total": sum(plan.parameters.values())},
        "processes": plan.topology.world_size,
        "engine": plan.topology.engine,
        "micro_batch_rows": config.training.batch_size,
        "tokens_per_step": plan.tokens_per_step,
        "tokens": plan.tokens,
        "flops_per_token": plan.flops_per_token,
        "learning_rates": plan.rates,
        "data": plan.data,
        "first_rows": plan.first_rows,
        "devices": [_estimate_as_object(each) for each in plan.estimates],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _estimate_as_object(estimate: DeviceEstimate) -> dict[str, Any]:
    memory, speed = estimate.memory, estimate.speed
    return {
        "name": estimate.device.name,
        "memory_bytes": estimate.device.memory_bytes,
        "estimated_bytes": None if memory is None else memory._asdict() | {"total": memory.total},
        "no_memory_reason": estimate.no_memory_reason,
        "largest_micro_batch_rows": estimate.largest_micro_batch,
        "tokens_per_second": None if speed is None else round(speed.tokens_per_second),
        "basis": None if speed is None else speed.basis,
        "seconds": estimate.seconds,
        "cost": estimate.cost,
    }


def format_plan(plan: Plan, config: Config) -> Iterator[str]:
    """Lines of text, in sections."""
    training = config.training
    if config.job.print_args:
        yield from _section("options", plan.options.strip().splitlines())
    else:
        title = "options that differ from their defaults (all: --job.print_args)"
        yield from _section(title, plan.changed_options.strip().splitlines())
    total = sum(plan.parameters.values())
    yield from _section(
        f"parameters of {plan.model_type}",
        [
            *(
                f"{part:<14}{count:>17,} {count / total:7.1%}"
                for part, count in plan.parameters.items()
                if count
            ),
            f"{'total':<14}{total:>17,}",
        ],
    )
    ranks = plan.tokens_per_step // (
        training.batch_size * training.gradient_accumulation_steps * training.seq_len
    )
    yield from _section(
        "steps",
        [
            f"{training.batch_size} rows x {ranks} ranks x {training.gradient_accumulation_steps} "
            f"micro-batches x {training.seq_len:,} tokens = {plan.tokens_per_step:,} tokens a step",
            f"{training.steps:,} steps: {plan.tokens:,} tokens, "
            f"{plan.tokens / total:.1f} for each parameter",
            "FLOPs of a token, forward and backward: "
            + ("unknown" if plan.flops_per_token is None else f"{plan.flops_per_token:.4g}"),
        ],
    )
    steps, rates = zip(*plan.rates, strict=True)
    yield from _section("learning rate", plot_rates(steps, rates))
    if (long_warmup := describe_long_warmup(training)) is not None:
        yield f"  {long_warmup}"
    if not config.job.dry_run_gpu and not torch.cuda.is_available():
        names = ", ".join(estimate.device.name for estimate in plan.estimates)
        yield f"\nThis machine has no GPU: memory and time are those of {names}, not of this CPU."
    for estimate in plan.estimates:
        yield from _section(estimate.device.name, _format_estimate(estimate, plan, config))
    yield from _section(f"data: {plan.data}", plan.first_rows)
    yield "\nNothing was trained and nothing written; without job.dry_run this run begins."


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"\n{title}"
    yield from (f"  {line}" for line in lines)


def _format_estimate(estimate: DeviceEstimate, plan: Plan, config: Config) -> Iterator[str]:
    training, memory = config.training, estimate.memory
    if memory is None:
        yield f"memory: {estimate.no_memory_reason}"
    else:
        graphs = ", passes as CUDA graphs" * plan.graphs
        yield f"memory of a device, micro-batches of {training.batch_size} rows{graphs}:"
        for name, part in MEMORY_PARTS.items():
            if size := memory._asdict()[name]:
                yield f"  {part:<40}{_format_bytes(size):>12}"
        of = estimate.device.memory_bytes
        yield f"  {'in all':<40}{_format_bytes(memory.total):>12}" + (
            f" of {of / 2**30:.1f}" if of else ""
        )
    if estimate.largest_micro_batch is not None:
        yield from _advise(estimate.largest_micro_batch, config)
    elif memory is not None:
        yield f"its memory is not known here; known are {', '.join(GPU_MEMORY_GIB)}"
    if estimate.speed is None:
        yield "time: not known: no model of about this size was measured, or not on such a GPU"
        return
    assert estimate.seconds is not None
    devices = plan.topology.world_size
    yield (
        f"time: {_format_duration(estimate.seconds)} on {devices} of them, at "
        f"{estimate.speed.tokens_per_second:,.0f} tok/s each ({estimate.speed.basis}); "
        "evaluation and saves not counted"
    )
    if estimate.cost is not None:
        yield f"cost: {estimate.cost:,.2f} at {config.job.gpu_hour_price:,.2f} an hour"
    else:
        yield "cost: give --job.gpu_hour_price"


def _advise(largest: int, config: Config) -> Iterator[str]:
    training = config.training
    rows, accumulation = training.batch_size, training.gradient_accumulation_steps
    yield f"largest micro-batch that fits: {largest} rows (training.batch_size)"
    if largest < rows:
        yield f"these micro-batches of {rows} rows do not fit"
        return
    divisors = [n for n in range(1, accumulation) if rows * accumulation // n <= largest]
    fewer = [n for n in divisors if accumulation % n == 0]
    if fewer:
        yield (
            "the same step in fewer passes: "
            f"--training.batch_size {rows * accumulation // fewer[0]} "
            f"--training.gradient_accumulation_steps {fewer[0]}"
        )


def _format_bytes(size: int) -> str:
    """In GiB, below one in MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _format_duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:,.1f} hours" if seconds < 172800 else f"{seconds / 86400:,.1f} days"
