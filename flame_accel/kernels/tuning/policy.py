"""Whether a run is long enough to earn back the time that tuning its kernels takes.

A pure function of the options and the model, so that every rank and every restart decides alike.
What happens to a kernel that is not tuned is decided in `tuner`.
"""

from typing import Literal, NamedTuple

TuneKernels = Literal["auto", "always", "never"]

SUSTAINED_FLOPS = 2e14
"""Operations per second of a training run, about 40% of what an H100 or H200 reaches in matrix
products; 240e12 and 316e12 were measured for a GLA of 340M parameters."""
UNKNOWN_FLOPS_PER_TOKEN = 2.2e9
"""Taken where a model's operations cannot be counted: those of 340M parameters."""
TUNING_SECONDS = 120
"""What tuning all kernels of a model costs: 119 to 136 seconds were measured on an H100."""
TUNING_GAIN = 0.1
"""Share of the run that tuned kernels save, compared with the nearest configuration; at most."""
BREAK_EVEN_SECONDS = TUNING_SECONDS / TUNING_GAIN


class TuningDecision(NamedTuple):
    """What happens to kernels that have no configuration for their shape."""

    tunes: bool
    """Whether they are tuned; otherwise they take the nearest configuration."""
    message: str
    """One line for the log: the decision, its reason, and the option that changes it."""


def decide_tuning(
    option: TuneKernels, flops_per_token: float | None, tokens_per_device: float
) -> TuningDecision:
    """Decides whether a run tunes kernels.

    Args:
        option: `model.tune_kernels`.
        flops_per_token: Operations of training on one token; None if unknown.
        tokens_per_device: Tokens of the whole run, divided by the number of its devices.
    """
    seconds = (flops_per_token or UNKNOWN_FLOPS_PER_TOKEN) * tokens_per_device / SUSTAINED_FLOPS
    length = f"about {_format_duration(seconds)} of computation"
    break_even = f"pays off from {_format_duration(BREAK_EVEN_SECONDS)} on"
    kernels = "kernels without a configuration for their shape"
    if option == "auto":
        tunes = seconds >= BREAK_EVEN_SECONDS
        reason = f"{length}; tuning {break_even}"
    else:
        tunes = option == "always"
        reason = f"model.tune_kernels is {option}"
    if tunes:
        other = "--model.tune_kernels never takes the nearest configuration"
        return TuningDecision(True, f"{kernels} are tuned ({reason}); {other}")
    other = "--model.tune_kernels always tunes them"
    return TuningDecision(False, f"{kernels} take the nearest one ({reason}); {other}")


def _format_duration(seconds: float) -> str:
    """Rounded for reading: "a second", "12 seconds", "20 minutes", "3.1 hours"."""
    if seconds < 1:
        return "a second"
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
