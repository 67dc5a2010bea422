"""How much of each dataset a run reads: its share of the tokens, and how often it is repeated."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flame_accel.commands.data.dataset_sampling import TokenEstimate
from flame_accel.commands.data.packing_statistics import PackingStatistics


class DatasetUse(NamedTuple):
    """How much of a dataset a run reads."""

    share: float
    """Of the tokens of the mixture."""
    tokens: float
    """Tokens read in the whole run."""
    epochs: float | None
    """Passes over the dataset; None: its size is not known."""


def compute_dataset_uses(
    shares: Sequence[float],
    totals: Sequence[TokenEstimate | None],
    packing: PackingStatistics,
    run_positions: int,
) -> list[DatasetUse]:
    """How much of each dataset a run reads.

    Args:
        shares: of the datasets in the tokens, with a sum of 1.
        totals: tokens of each dataset, where known.
        packing: how documents fill rows; not every position in a row holds a new token.
        run_positions: token positions in all rows of the run.
    """
    tokens = run_positions * sum(packing.tokens_of_sources) / packing.positions
    return [
        # an estimate of no tokens: there was no document in the sample
        DatasetUse(
            share, tokens * share, tokens * share / total.tokens if total and total.tokens else None
        )
        for share, total in zip(shares, totals, strict=True)
    ]


def format_mixture_table(
    names: Sequence[str],
    uses: Sequence[DatasetUse],
    measured_tokens: Sequence[int],
    run_positions: int,
) -> Iterator[str]:
    """Lines of a table with a row per dataset: share asked for and measured, tokens, epochs.

    Args:
        names: of the datasets.
        uses: how much of them the run reads.
        measured_tokens: tokens of each in the first rows of the run.
        run_positions: token positions in all rows of the run.
    """
    yield f"{'':<30}{'asked for':>10}{'measured':>10}{'tokens':>18}{'epochs':>10}"
    for name, use, given in zip(names, uses, measured_tokens, strict=True):
        short = name if len(name) < 30 else f"...{name[-26:]}"
        epochs = "?" if use.epochs is None else f"{use.epochs:,.2f}"
        figures = f"{use.share:>10.2%}{given / sum(measured_tokens):>10.2%}{use.tokens:>18,.0f}"
        yield f"{short:<30}{figures}{epochs:>10}"
    repeated = run_positions - sum(use.tokens for use in uses)
    yield (
        f"{run_positions:,} positions in rows, {repeated / run_positions:.2%} of them padding or "
        "tokens repeated after a cut"
    )
    if any(use.epochs is None for use in uses):
        yield "?: the size is not known until more records are read, see --documents"
