"""A look at the records of a dataset: lengths of documents, bytes, and what gave no document."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from flame_accel.commands.data.figures import Total, estimate_total
from flame_accel.data.cache.chunk_encoder import count_utf8_bytes
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.dataset import Dataset
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.sources.table import Table
from flame_accel.data.tokens.encoder import EncodedTable

KEPT_RECORDS = 5
"""Damaged records of which it is kept where they are."""


class Sample(NamedTuple):
    """What was found in some records of a dataset."""

    num_read: int
    """Records; each is a document, held out, empty or damaged."""
    lengths: np.ndarray
    """Int64 [documents], in tokens, bos and eos included."""
    num_bytes: int
    """UTF-8 bytes of these documents' text."""
    num_held_out: int
    num_empty: int
    num_damaged: int
    damaged: list[Skipped]
    """The first of them."""


class Look(NamedTuple):
    """What is known of a dataset."""

    sample: Sample
    num_records: int | None
    """Of the whole dataset; None: a stream, and its end was not seen."""
    total: Total | None
    """Tokens of the whole dataset; None as well."""


def look_at(dataset: Dataset, wanted: int) -> Look:
    """Reads records: evenly spread ones, of a stream the first.

    Args:
        dataset: The dataset.
        wanted: How many records; 0: all of them.
    """
    num_records = dataset.num_documents
    if num_records is not None:
        places = spread_evenly(num_records, wanted)
        sample = count_records(_at(dataset, places))
    else:
        found = dataset.in_order()
        sample = count_records(islice(found, wanted or None))
        if next(found, None) is None:
            num_records = sample.num_read
    total = None
    if isinstance(dataset.records, TokenCache) and dataset.held_out is None:
        total = Total(float(dataset.records.num_tokens))
    elif num_records is not None:
        total = estimate_total(sample.lengths, sample.num_read, num_records)
    return Look(sample, num_records, total)


def count_records(found: Iterable[tuple[Document | Skipped, int]]) -> Sample:
    """Counts what records gave, each with the length of its text in UTF-8."""
    counts = {"empty": 0, "damaged": 0, "held out": 0}
    lengths: list[int] = []
    damaged: list[Skipped] = []
    num_bytes = 0
    for document, size in found:
        if isinstance(document, Document):
            lengths.append(len(document.tokens))
            num_bytes += size
            continue
        counts[document.why] += 1
        if document.why == "damaged" and len(damaged) < KEPT_RECORDS:
            damaged.append(document)
    return Sample(
        num_read=len(lengths) + sum(counts.values()),
        lengths=np.array(lengths, dtype=np.int64),
        num_bytes=num_bytes,
        num_held_out=counts["held out"],
        num_empty=counts["empty"],
        num_damaged=counts["damaged"],
        damaged=damaged,
    )


def spread_evenly(total: int, wanted: int) -> list[int]:
    """Indices below `total`, evenly spread and at most `wanted` of them; 0 takes all."""
    taken = min(total, wanted) if wanted else total
    return [i * total // taken for i in range(taken)]


def _at(dataset: Dataset, places: list[int]) -> Iterator[tuple[Document | Skipped, int]]:
    records = dataset.records
    if isinstance(records, TokenCache):
        for place in places:
            yield records[place], records.document_bytes(place)
        return
    assert isinstance(records, Table)
    documents = EncodedTable(records, dataset.encode)
    for place in places:
        yield documents[place], count_utf8_bytes(records[place])
