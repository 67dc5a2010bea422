"""Pure functions of the step: the learning rate, and whether periodic work is due.

Nothing here knows an optimizer or keeps state: the loop writes the value into the parameter groups
before each update, so that no scheduler has to be prepared, stepped or saved.
"""

import math

from flame_accel.config import OptimizerConfig, TrainingConfig


def is_due(step: int, interval: int, total_steps: int) -> bool:
    """Whether work with this interval is due after a completed step; the last step always is."""
    return step == total_steps or (interval > 0 and step % interval == 0)


def num_decay_steps(optimizer: OptimizerConfig, *, total_steps: int, warmup_steps: int) -> int:
    """Number of updates in which the rate decays: the last ones for wsd, else all after warm-up."""
    if optimizer.scheduler == "wsd":
        return round(optimizer.decay_ratio * total_steps)
    return total_steps - warmup_steps


def describe_long_warmup(training: TrainingConfig) -> str | None:
    """What to say of a warm-up that takes more than half of the steps; None of a shorter one.

    A recipe's warm-up is easily longer than what is left of its steps in a short run.
    """
    if 2 * training.warmup_steps <= training.steps:
        return None
    return (
        f"the warm-up takes {training.warmup_steps:,} of {training.steps:,} steps; "
        f"a fifth of them: --training.warmup_steps {training.steps // 5}"
    )


def learning_rate(
    step: int, optimizer: OptimizerConfig, *, total_steps: int, warmup_steps: int
) -> float:
    """Learning rate of the update with index `step` (from 0) of a run of `total_steps` updates.

    `(s+1)/W` of `lr` during the warm-up of W updates, then `lr`, then over the last D updates with
    x = (s+1-(N-D))/D down to the floor r = `min_lr_ratio`: linear `1-(1-r)x`, cosine
    `r+(1-r)(1+cos(pi x))/2`, sqrt `r+(1-r)(1-sqrt(x))`. The last update uses exactly `r * lr`, and
    so does every one after it.
    """
    if step < warmup_steps:
        return optimizer.lr * (step + 1) / warmup_steps
    decay = num_decay_steps(optimizer, total_steps=total_steps, warmup_steps=warmup_steps)
    start = total_steps - decay
    if step < start:
        return optimizer.lr
    shape = optimizer.decay_type if optimizer.scheduler == "wsd" else optimizer.scheduler
    floor = optimizer.min_lr_ratio
    if step + 1 >= total_steps:
        return optimizer.lr * floor
    x = (step + 1 - start) / decay
    fall = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "sqrt": 1 - math.sqrt(x)}
    return optimizer.lr * (floor + (1 - floor) * fall[shape])
