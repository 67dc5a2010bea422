"""Figures of a run's data as text of 80 columns, and the lengths of documents as a picture.

The figures are made by `data.summary`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flame_accel.commands.data.figures import (
    Bin,
    Packed,
    Total,
    Use,
    bin_lengths,
    describe_lengths,
)
from flame_accel.commands.data.samples import Look
from flame_accel.config.errors import UserError
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.dataset import Dataset
from flame_accel.data.sources.table import Table
from flame_accel.files import replace_file

BAR = 40
"""Longest bar of the text histogram, in characters."""


def draw_dataset(dataset: Dataset, look: Look, limits: Mapping[str, int]) -> Iterator[str]:
    """Draws what is known of a dataset.

    Args:
        dataset: The dataset.
        look: What was found in it.
        limits: Lengths of which it is said how many documents are longer, by their names.
    """
    sample, total = look.sample, look.total
    kind = _kind(dataset)
    yield f"{kind}, of conversations" if dataset.conversations else kind
    counts = {
        "documents": len(sample.lengths),
        "held out": sample.num_held_out,
        "empty": sample.num_empty,
        "damaged": sample.num_damaged,
    }
    said = (f"{count:,} {name}" for name, count in counts.items() if count or name == "documents")
    yield f"records    {_say_read(look)}: {', '.join(said)}"
    if dataset.held_out is not None:
        share = sample.num_held_out / max(1, sample.num_read)
        yield f"held out   {dataset.held_out.share:.2%} asked for, {share:.2%} of those read"
    yield f"tokens     {'not known before all is read' if total is None else _say_total(total)}"
    if not len(sample.lengths):
        yield "           there is no document among the records that were read"
        return
    yield f"bytes      {sample.num_bytes / sample.lengths.sum():.2f} per token"
    yield from draw_lengths(sample.lengths, limits)


def _say_read(look: Look) -> str:
    num_read = look.sample.num_read
    if look.num_records is None:
        return f"the first {num_read:,} were read"
    if num_read == look.num_records:
        return f"{num_read:,}, all were read"
    return f"{look.num_records:,}, of which {num_read:,} were read"


def _kind(dataset: Dataset) -> str:
    if isinstance(dataset.records, TokenCache):
        return "a token cache"
    if isinstance(dataset.records, Table):
        return "a table"
    shards = len(dataset.records)
    return f"a stream of {shards:,} shards" if shards > 1 else "a stream of one shard"


def _say_total(total: Total) -> str:
    if not total.error:
        return f"{total.tokens:,.0f}"
    if math.isinf(total.error):
        return f"about {total.tokens:,.0f}, from one record"
    return f"about {float(f'{total.tokens:.3g}'):,.0f}, +- {total.error / total.tokens:.1%}"


def draw_lengths(lengths: np.ndarray, limits: Mapping[str, int]) -> Iterator[str]:
    """Draws the lengths of documents, int [documents], in tokens, at least one."""
    figures = describe_lengths(lengths)
    yield (
        f"lengths    median {figures.median:,}, mean {figures.mean:,.1f}, "
        f"{figures.least:,} to {figures.most:,} tokens"
    )
    yield f"           90% have at most {figures.most_of_90:,}, 99% at most {figures.most_of_99:,}"
    for name, limit in limits.items():
        longer = int((lengths > limit).sum())
        yield f"           {longer:,} ({longer / len(lengths):.1%}) longer than {name}, {limit:,}"
    yield from draw_histogram(bin_lengths(lengths))


def draw_histogram(bins: Sequence[Bin]) -> Iterator[str]:
    """A line per bin; a bar of one character or more where there is a document."""
    most = max(bin.count for bin in bins)
    for low, high, count in bins:
        bar = "#" * -(-count * BAR // most)
        yield f"{low:>11,} - {high:<11,} {count:>9,} {bar}".rstrip()


def draw_packing(packings: Mapping[str, Packed]) -> Iterator[str]:
    """Draws a column per packing, by its name."""
    rows = {
        "tokens that are targets": [p.targets / p.tokens for p in packings.values()],
        "padding": [p.padding / p.tokens for p in packings.values()],
    }
    measured = next(iter(packings.values()))
    yield f"{f'in {measured.rows:,} rows':<26}" + "".join(f"{name:>16}" for name in packings)
    for name, shares in rows.items():
        yield f"{name:<26}" + "".join(f"{share:>16.2%}" for share in shares)
    in_rows = [f"{p.documents_in_rows / p.rows:,.2f}" for p in packings.values()]
    yield f"{'documents in a row':<26}" + "".join(f"{text:>16}" for text in in_rows)
    cut = [f"{p.cut:,} of {p.documents:,}" for p in packings.values()]
    yield f"{'documents that are cut':<26}" + "".join(f"{text:>16}" for text in cut)


def draw_mixture(
    names: Sequence[str], uses: Sequence[Use], measured: Sequence[int], run_tokens: int
) -> Iterator[str]:
    """Draws a line per dataset: its share, asked for and measured, its tokens and its epochs.

    Args:
        names: Of the datasets.
        uses: What the run takes of them.
        measured: Tokens of each at the beginning of the run.
        run_tokens: Places in all rows of the run.
    """
    yield f"{'':<30}{'asked for':>10}{'measured':>10}{'tokens':>18}{'epochs':>10}"
    for name, use, given in zip(names, uses, measured, strict=True):
        short = name if len(name) < 30 else f"...{name[-26:]}"
        epochs = "?" if use.epochs is None else f"{use.epochs:,.2f}"
        figures = f"{use.share:>10.2%}{given / sum(measured):>10.2%}{use.tokens:>18,.0f}"
        yield f"{short:<30}{figures}{epochs:>10}"
    repeated = run_tokens - sum(use.tokens for use in uses)
    yield (
        f"{run_tokens:,} places in rows, {repeated / run_tokens:.2%} of them padding or tokens "
        "that come again behind a cut"
    )
    if any(use.epochs is None for use in uses):
        yield "?: the size is not known before more records are read, see --documents"


def write_picture(path: Path, lengths: Mapping[str, np.ndarray], limits: Mapping[str, int]) -> None:
    """Writes a PNG: how the documents of each source are spread over lengths, on a log axis.

    Args:
        path: Of the picture; its folder is made.
        lengths: Int [documents] of each source, in tokens, at least one.
        limits: Lengths to mark, by their names.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "a picture needs the package matplotlib, which is not installed",
            where="--output",
            remedy="pip install matplotlib, or leave --output out",
        ) from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    low = min(int(values.min()) for values in lengths.values())
    high = max(int(values.max()) for values in lengths.values())
    edges = np.geomspace(low, high + 1, 49)
    for name, values in lengths.items():
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins=edges.tolist(), weights=weights, histtype="step", label=name)
    for (name, limit), style in zip(limits.items(), ("--", ":"), strict=False):
        axes.axvline(limit, color="black", linestyle=style, linewidth=1, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("tokens in a document")
    axes.set_ylabel("share of the documents")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
