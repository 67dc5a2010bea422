"""Reads the records of one file from any place: JSON lines, JSON arrays, Parquet, text.

Each record comes with the place behind it, from which reading continues as if it had never
stopped. What cannot be read is a `Skipped` that says where it is. Bytes come from `file_access`;
what a record must be is in `record_parsing`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.file_access import (
    RemoteReadError,
    describe_error,
    open_file,
    open_seekable,
    read_chunks,
)
from flame_accel.data.sources.file_formats import JSON, PARQUET, TEXT, file_compression, file_format
from flame_accel.data.sources.record_parsing import (
    RecordSpec,
    choose_text_column,
    describe_excess_length,
    describe_utf8_error,
    extract_record,
    parse_json,
)

READER_VERSION = 2
"""Increased when the same files would give other records: copies of them are then made anew."""
END = 2**62
"""The place behind a file whose rest cannot be read."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_BATCH_ROWS = 256
PARQUET_BUFFER_BYTES = 1 << 22
"""Bytes of a column that are read at a time, whatever the size of row groups."""

PlacedRecord = tuple[Record | Skipped, int]
"""A record and the place behind it."""


def read_records(
    file: str, place: int, *, text_column: str | None, max_bytes: int
) -> Iterator[PlacedRecord]:
    """Read the records of a file from a place, each with the place behind it.

    A file that cannot be opened, or read to its end, ends with one damaged record that says so.

    Args:
        file: path or URL.
        place: row of Parquet, element of a JSON array, byte (decompressed) of JSON lines; 0 is the
            start. A text file is one record, its end is 1.
        text_column: column that holds texts or conversations; None: text, content or messages.
        max_bytes: longer records count as damaged: the line in JSON lines, otherwise the text.

    Raises:
        UserError: the first record of the file has no such column, or one of another type.
    """
    read = FILE_READERS[file_format(file)]
    spec = RecordSpec(text_column, max_bytes)
    salvage = False
    while place < END:
        try:
            for record in read(file, place, spec, salvage):
                yield record
                place = record[1]
            return
        except (OSError, pa.ArrowException) as error:
            # a torn file may still hold some records: once more, in the smallest pieces
            if salvage or isinstance(error, RemoteReadError):
                yield Skipped("damaged", file, _describe_damage(file, error)), END
                return
            salvage = True


def _read_text_file(
    file: str, place: int, spec: RecordSpec, salvage: bool
) -> Iterator[PlacedRecord]:
    if place:
        return
    size = 0
    pieces: list[bytes] = []
    with open_file(file) as opened:
        if opened.seekable:
            size = opened.stream.seek(0, 2)
        if size <= spec.max_bytes:
            size = 0
            for piece in read_chunks(opened, b"", 0):
                size += len(piece)
                if size <= spec.max_bytes:
                    pieces.append(piece)
    if size > spec.max_bytes:
        yield Skipped("damaged", file, describe_excess_length(size, spec.max_bytes)), 1
        return
    try:
        text = b"".join(pieces).decode("utf-8")
    except UnicodeDecodeError as error:
        yield Skipped("damaged", file, describe_utf8_error(error)), 1
        return
    yield text or Skipped("empty", file, "no text"), 1


def _read_json_file(
    file: str, place: int, spec: RecordSpec, salvage: bool
) -> Iterator[PlacedRecord]:
    """Records of JSON lines, or of one JSON array."""
    with open_file(file) as opened:
        head = opened.stream.read(1)
        if head == BYTE_ORDER_MARK[:1]:
            head += opened.stream.read(3)
        if head[-1:] != b"[":
            pieces = read_chunks(opened, head, place, salvage)
            yield from _read_json_lines(pieces, file, place, spec)
            return
        array = parse_json(b"".join(read_chunks(opened, head, 0)), file)
    if isinstance(array, Skipped):
        yield array, END
        return
    for i in range(place, len(array)):
        yield extract_record(array[i], spec, f"{file}, element {i}", i == 0), i + 1


def _read_json_lines(
    pieces: Iterable[bytes], file: str, place: int, spec: RecordSpec
) -> Iterator[PlacedRecord]:
    from_start = first = place == 0
    for number, (line, end) in enumerate(_split_lines(pieces, place, spec.max_bytes), start=1):
        where = f"{file}, line {number}" if from_start else f"{file}, byte {place}"
        place = end
        if isinstance(line, int):
            record = Skipped("damaged", where, describe_excess_length(line, spec.max_bytes))
        elif not line or line.isspace():
            continue
        else:
            value = parse_json(line, where)
            skipped = isinstance(value, Skipped)
            record = value if skipped else extract_record(value, spec, where, first)
        first = False
        yield record, end


def _split_lines(
    pieces: Iterable[bytes], place: int, max_bytes: int
) -> Iterator[tuple[bytes | int, int]]:
    """Lines with the place behind each; of a line longer than `max_bytes` only its length."""
    # parts and length of the unfinished line
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        *closed, rest = piece.split(b"\n")
        for line in closed:
            length += len(line)
            place += length + 1
            if length > max_bytes:
                yield length, place
            else:
                yield b"".join((*held, line)) if held else line, place
            held, length = [], 0
        length += len(rest)
        if length > max_bytes:
            held = []
        elif rest:
            held.append(rest)
    if length:
        yield length if length > max_bytes else b"".join(held), place + length


def _read_parquet_file(
    file: str, place: int, spec: RecordSpec, salvage: bool
) -> Iterator[PlacedRecord]:
    """Records of a Parquet file: only the text column, without the row groups before the place."""
    with open_seekable(file) as stream:
        try:
            source = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise OSError(f"not a Parquet file: {str(error).splitlines()[0]}") from error
        column = choose_text_column(source.schema_arrow.names, spec.column, file)
        row, group = 0, 0
        while group < source.num_row_groups:
            behind = row + source.metadata.row_group(group).num_rows
            if place < behind:
                break
            row, group = behind, group + 1
        for batch in source.iter_batches(
            1 if salvage else PARQUET_BATCH_ROWS,
            row_groups=range(group, source.num_row_groups),
            columns=[column],
            use_threads=False,
        ):
            before = min(max(place - row, 0), len(batch))
            row += before
            for value in _decode_values(batch.column(0).slice(before)):
                where = f"{file}, row {row}"
                yield extract_record({column: value}, spec, where, row == 0), row + 1
                row += 1


def _decode_values(column: pa.Array) -> Sequence[Any]:
    """Python values of a column; in place of one that is not UTF-8, its error."""

    def value(i: int) -> object:
        try:
            return column[i].as_py()
        except UnicodeDecodeError as error:
            return error

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [value(i) for i in range(len(column))]


def _describe_damage(file: str, error: Exception) -> str:
    compression = file_compression(file)
    # decompressors raise a plain OSError; those of the system have a number
    damaged = f"damaged {compression} file: " if compression and type(error) is OSError else ""
    return damaged + describe_error(error)


FILE_READERS = {PARQUET: _read_parquet_file, JSON: _read_json_file, TEXT: _read_text_file}
