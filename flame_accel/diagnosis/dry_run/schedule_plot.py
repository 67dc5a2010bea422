"""The learning rate over the steps as a picture of characters."""

from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 60, 8


def sample_steps(total_steps: int, width: int = WIDTH) -> list[int]:
    """Updates (from 0) that a plot of that width shows: the first, the last, and even steps."""
    columns = min(width, total_steps)
    return [round(column * (total_steps - 1) / max(columns - 1, 1)) for column in range(columns)]


def plot_rates(steps: Sequence[int], rates: Sequence[float]) -> Iterator[str]:
    """Lines of a plot, from the top.

    Args:
        steps: Updates, from 0; one column each.
        rates: Their learning rates, at least 0.
    """
    peak = max(rates)
    levels = [round(rate / peak * (HEIGHT - 1)) if peak else 0 for rate in rates]
    for level in reversed(range(HEIGHT)):
        label = {HEIGHT - 1: f"{peak:.2e}", 0: "0"}.get(level, "")
        points = "".join("*" if each == level else " " for each in levels)
        yield f"{label:>9} |{points}".rstrip()
    last = f"{steps[-1] + 1:,}"
    yield f"{'':>9} +{'-' * len(steps)}"
    yield f"{'step':>9}  1{last.rjust(len(steps) - 1)}"
