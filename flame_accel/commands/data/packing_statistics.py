"""Statistics of how documents fill rows: targets, padding, cut documents, tokens of each source."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flame_accel.data.row_tracing import TracedRow


class PackingStatistics(NamedTuple):
    """How documents fill rows."""

    rows: int
    positions: int
    """Token positions in these rows."""
    targets: int
    """Tokens that the loss is computed for."""
    padding: int
    documents: int
    """Documents of which at least a part is in the rows."""
    documents_in_rows: int
    """The same, with a document counted once for each row that it is in."""
    cut_documents: int
    """Documents in more than one piece, so that the state does not reach from start to end."""
    tokens_of_sources: list[int]
    """Tokens of each source; one in two pieces (see `lanes.sequential_packing`) once."""


def compute_packing_statistics(rows: Sequence[TracedRow], num_sources: int) -> PackingStatistics:
    """Statistics of traced rows, at least one."""
    documents: set[tuple[int, int]] = set()
    cut: set[tuple[int, int]] = set()
    # by lane and source, ids of the tokens in the rows
    token_ids: dict[tuple[int, int], list[np.ndarray]] = {}
    padding = documents_in_rows = 0
    for row in rows:
        documents_of_row = set()
        for piece in row.pieces:
            if piece.document is None:
                padding += len(piece.tokens)
                continue
            documents_of_row.add((row.lane, piece.document))
            # a first token alone, for which a row had room, is repeated with all the others
            if len(piece.tokens) < piece.document_length and piece.end_in_document > 1:
                cut.add((row.lane, piece.document))
            ids = np.arange(piece.document + piece.offset, piece.document + piece.end_in_document)
            token_ids.setdefault((row.lane, piece.source), []).append(ids)
        documents |= documents_of_row
        documents_in_rows += len(documents_of_row)
    tokens_of_sources = [0] * num_sources
    for (_, source), ids in token_ids.items():
        tokens_of_sources[source] += len(np.unique(np.concatenate(ids)))
    return PackingStatistics(
        rows=len(rows),
        positions=sum(len(row.tokens) for row in rows),
        targets=sum(int(row.targets.sum()) for row in rows),
        padding=padding,
        documents=len(documents),
        documents_in_rows=documents_in_rows,
        cut_documents=len(cut),
        tokens_of_sources=tokens_of_sources,
    )


def format_packing_table(packings: Mapping[str, PackingStatistics]) -> Iterator[str]:
    """Lines of a table with a column per packing, by name."""
    shares = {
        "tokens that are targets": [p.targets / p.positions for p in packings.values()],
        "padding": [p.padding / p.positions for p in packings.values()],
    }
    first = next(iter(packings.values()))
    yield f"{f'in {first.rows:,} rows':<26}" + "".join(f"{name:>16}" for name in packings)
    for name, values in shares.items():
        yield f"{name:<26}" + "".join(f"{share:>16.2%}" for share in values)
    per_row = [f"{p.documents_in_rows / p.rows:,.2f}" for p in packings.values()]
    yield f"{'documents in a row':<26}" + "".join(f"{text:>16}" for text in per_row)
    cut = [f"{p.cut_documents:,} of {p.documents:,}" for p in packings.values()]
    yield f"{'documents that are cut':<26}" + "".join(f"{text:>16}" for text in cut)
