"""Reads some records of a dataset and formats what they say about all of it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from flame_accel.commands.data.document_lengths import format_length_statistics_and_histogram
from flame_accel.data.documents import Document, EncodedRecord, Skipped
from flame_accel.data.stages import EncodedDataset

MAX_NAMED_RECORDS = 5
"""Damaged records whose places are kept."""


class RecordCounts(NamedTuple):
    """What the records that were read gave."""

    num_read: int
    """Records; each is a document, held out, empty or damaged."""
    lengths: np.ndarray
    """int64 [documents], in tokens, bos and eos included."""
    num_bytes: int
    """UTF-8 bytes of the text of these documents."""
    num_held_out: int
    num_empty: int
    num_damaged: int
    damaged: list[Skipped]
    """The first of them."""


class TokenEstimate(NamedTuple):
    """Tokens of a whole dataset."""

    tokens: float
    error: float = 0.0
    """Two standard errors of the estimate; 0: exact."""


class DatasetSample(NamedTuple):
    """Some records of a dataset, and what is known of all of them."""

    counts: RecordCounts
    num_records: int | None
    """Of the whole dataset; None: a stream whose end was not reached."""
    total: TokenEstimate | None
    """None if `num_records` is."""


def read_even_or_first_records_and_estimate_tokens(
    dataset: EncodedDataset, max_records_or_zero_for_all: int
) -> DatasetSample:
    """Read records of a dataset: evenly spread ones, or the first ones of a stream.

    Args:
        dataset: the dataset.
        max_records_or_zero_for_all: number of records to read; 0 reads all.
    """
    num_records = dataset.num_records
    records = dataset.read_in_order(table_sample_size=max_records_or_zero_for_all)
    counts = count_records(islice(records, max_records_or_zero_for_all or None))
    # a stream whose end was reached has no further records
    if num_records is None and next(records, None) is None:
        num_records = counts.num_read
    total = None
    if dataset.num_tokens is not None:
        total = TokenEstimate(float(dataset.num_tokens))
    elif num_records is not None:
        total = estimate_total_tokens(counts.lengths, counts.num_read, num_records)
    return DatasetSample(counts, num_records, total)


def count_records(records: Iterable[EncodedRecord]) -> RecordCounts:
    """Count documents and skipped records, each given with the UTF-8 bytes of its text."""
    skipped = {"empty": 0, "damaged": 0, "held out": 0}
    lengths: list[int] = []
    damaged: list[Skipped] = []
    num_bytes = 0
    for document, size in records:
        if isinstance(document, Document):
            lengths.append(len(document.tokens))
            num_bytes += size
            continue
        skipped[document.why] += 1
        if document.why == "damaged" and len(damaged) < MAX_NAMED_RECORDS:
            damaged.append(document)
    return RecordCounts(
        num_read=len(lengths) + sum(skipped.values()),
        lengths=np.array(lengths, dtype=np.int64),
        num_bytes=num_bytes,
        num_held_out=skipped["held out"],
        num_empty=skipped["empty"],
        num_damaged=skipped["damaged"],
        damaged=damaged,
    )


def estimate_total_tokens(lengths: np.ndarray, num_read: int, num_records: int) -> TokenEstimate:
    """Estimate the tokens of a dataset from an even sample of its records.

    Args:
        lengths: int [documents], tokens of the documents among the records that were read.
        num_read: records that were read, including those without a document.
        num_records: records of the dataset.

    Returns:
        The mean times the number of records, with the standard error of a sample without
        replacement (Cochran, Sampling Techniques, 1977, section 2.6); records without a document
        count as 0 tokens.
    """
    tokens_per_record = np.zeros(num_read)
    tokens_per_record[: len(lengths)] = lengths
    tokens = float(tokens_per_record.mean()) * num_records
    if num_read == num_records:
        return TokenEstimate(float(tokens_per_record.sum()))
    if num_read < 2:
        return TokenEstimate(tokens, math.inf)
    spread = float(tokens_per_record.std(ddof=1)) / math.sqrt(num_read)
    return TokenEstimate(tokens, 2 * num_records * spread * math.sqrt(1 - num_read / num_records))


def format_dataset(
    dataset: EncodedDataset, sample: DatasetSample, cut_lengths_by_name: Mapping[str, int]
) -> Iterator[str]:
    """Lines that describe a dataset.

    Args:
        dataset: the dataset.
        sample: what was read of it.
        cut_lengths_by_name: by name, lengths in tokens; the lines say how many documents are
            longer.
    """
    counts = sample.counts
    yield (
        f"{dataset.storage_description}, of conversations"
        if dataset.conversations
        else dataset.storage_description
    )
    numbers = {
        "documents": len(counts.lengths),
        "held out": counts.num_held_out,
        "empty": counts.num_empty,
        "damaged": counts.num_damaged,
    }
    listed = (f"{n:,} {name}" for name, n in numbers.items() if n or name == "documents")
    yield f"records    {_describe_number_read(sample)}: {', '.join(listed)}"
    if dataset.held_out is not None:
        share = counts.num_held_out / max(1, counts.num_read)
        yield f"held out   {dataset.held_out.share:.2%} asked for, {share:.2%} of those read"
    yield f"tokens     {_describe_total_tokens(sample.total)}"
    if not len(counts.lengths):
        yield "           there is no document among the records that were read"
        return
    yield f"bytes      {counts.num_bytes / counts.lengths.sum():.2f} per token"
    yield from format_length_statistics_and_histogram(counts.lengths, cut_lengths_by_name)


def _describe_number_read(sample: DatasetSample) -> str:
    num_read = sample.counts.num_read
    if sample.num_records is None:
        return f"the first {num_read:,} were read"
    if num_read == sample.num_records:
        return f"{num_read:,}, all were read"
    return f"{sample.num_records:,}, of which {num_read:,} were read"


def _describe_total_tokens(total: TokenEstimate | None) -> str:
    if total is None:
        return "not known until all records are read"
    if not total.error:
        return f"{total.tokens:,.0f}"
    if math.isinf(total.error):
        return f"about {total.tokens:,.0f}, from one record"
    return f"about {float(f'{total.tokens:.3g}'):,.0f}, +- {total.error / total.tokens:.1%}"
