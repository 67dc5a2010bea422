"""Reads the records of one file from any position: JSON lines, JSON arrays, Parquet, text.

Each record comes with the position behind it, from which reading continues as if it had never
stopped. What cannot be read is a `Skipped` that says where it is. Bytes come from `file_access`;
what a record must be is in `record_parsing`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flame_accel.data.documents import PositionedRecord, Skipped
from flame_accel.data.sources.file_access import (
    RemoteReadError,
    describe_error_in_one_line,
    open_decompressed_or_raise_os_error,
    open_decompressed_seekable,
    read_chunks_from,
)
from flame_accel.data.sources.file_formats import (
    JSON,
    PARQUET,
    TEXT,
    format_by_suffix_else_text,
    gzip_or_zstd_by_suffix,
)
from flame_accel.data.sources.record_parsing import (
    RecordColumn,
    choose_text_column,
    describe_excess_length,
    describe_utf8_error,
    extract_record,
    parse_json_or_skipped,
)

READER_VERSION = 2
"""Increased when the same files would give other records: copies of them are then made anew."""
END = 2**62
"""The position behind a file whose rest cannot be read."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_BATCH_ROWS = 256
PARQUET_BUFFER_BYTES = 1 << 22
"""Bytes of a column that are read at a time, whatever the size of row groups."""


def read_records(
    file: str, position: int, record_column: RecordColumn
) -> Iterator[PositionedRecord]:
    """Read the records of a file from a position, each with the position behind it.

    A file that cannot be opened, or read to its end, ends with one damaged record that says so.

    Args:
        file: path or URL.
        position: row of Parquet, element of a JSON array, byte (decompressed) of JSON lines; 0 is
            the start. A text file is one record, its end is 1.
        record_column: which column is read; of JSON lines, `max_bytes` limits the whole line.

    Raises:
        UserError: the first record of the file has no such column, or one of another type.
    """
    read = FILE_READERS[format_by_suffix_else_text(file)]
    in_smallest_pieces = False
    while position < END:
        try:
            for record in read(file, position, record_column, in_smallest_pieces):
                yield record
                position = record.next_position
            return
        except (OSError, pa.ArrowException) as error:
            # a torn file may still hold some records: once more, in the smallest pieces
            if in_smallest_pieces or isinstance(error, RemoteReadError):
                damaged = Skipped("damaged", file, _describe_read_error(file, error))
                yield PositionedRecord(damaged, END)
                return
            in_smallest_pieces = True


def _read_text_file_as_one_record(
    file: str, position: int, record_column: RecordColumn, in_smallest_pieces: bool
) -> Iterator[PositionedRecord]:
    if position:
        return
    size, max_bytes = 0, record_column.max_bytes
    chunks: list[bytes] = []
    with open_decompressed_or_raise_os_error(file) as opened:
        if opened.seekable:
            size = opened.stream.seek(0, 2)
        if size <= max_bytes:
            size = 0
            for piece in read_chunks_from(opened, b"", 0):
                size += len(piece)
                if size <= max_bytes:
                    chunks.append(piece)
    if size > max_bytes:
        record = Skipped("damaged", file, describe_excess_length(size, max_bytes))
    else:
        try:
            record = b"".join(chunks).decode("utf-8") or Skipped("empty", file, "no text")
        except UnicodeDecodeError as error:
            record = Skipped("damaged", file, describe_utf8_error(error))
    yield PositionedRecord(record, 1)


def _read_json_array_or_lines(
    file: str, position: int, record_column: RecordColumn, in_smallest_pieces: bool
) -> Iterator[PositionedRecord]:
    """Records of JSON lines, or of one JSON array."""
    with open_decompressed_or_raise_os_error(file) as opened:
        head = opened.stream.read(1)
        if head == BYTE_ORDER_MARK[:1]:
            head += opened.stream.read(3)
        if head[-1:] != b"[":
            chunks = read_chunks_from(opened, head, position, start_byte_by_byte=in_smallest_pieces)
            yield from _read_json_lines(chunks, file, position, record_column)
            return
        array = parse_json_or_skipped(b"".join(read_chunks_from(opened, head, 0)), file)
    if isinstance(array, Skipped):
        yield PositionedRecord(array, END)
        return
    assert isinstance(array, list)
    for i in range(position, len(array)):
        where = f"{file}, element {i}"
        record = extract_record(array[i], record_column, where, raise_for_wrong_column=i == 0)
        yield PositionedRecord(record, i + 1)


def _read_json_lines(
    chunks: Iterable[bytes], file: str, position: int, record_column: RecordColumn
) -> Iterator[PositionedRecord]:
    from_start = first = position == 0
    lines = _split_lines(chunks, position, record_column.max_bytes)
    for number, (line, end) in enumerate(lines, start=1):
        where = f"{file}, line {number}" if from_start else f"{file}, byte {position}"
        position = end
        if isinstance(line, int):
            what = describe_excess_length(line, record_column.max_bytes)
            record = Skipped("damaged", where, what)
        elif not line or line.isspace():
            continue
        elif not isinstance(record := parse_json_or_skipped(line, where), Skipped):
            record = extract_record(record, record_column, where, raise_for_wrong_column=first)
        first = False
        yield PositionedRecord(record, end)


class _Line(NamedTuple):
    """A line of a file without its newline."""

    content_or_excess_length: bytes | int
    """Of a line longer than the limit only its length in bytes."""
    end: int
    """Position behind the newline."""


def _split_lines(
    chunks: Iterable[bytes], start_position: int, max_line_bytes: int
) -> Iterator[_Line]:
    """Split chunks of a file at newlines; the first chunk starts at `start_position`."""
    # parts and length of the unfinished line
    held: list[bytes] = []
    length, position = 0, start_position
    for piece in chunks:
        *closed, rest = piece.split(b"\n")
        for line in closed:
            length += len(line)
            position += length + 1
            if length > max_line_bytes:
                yield _Line(length, position)
            else:
                yield _Line(b"".join((*held, line)) if held else line, position)
            held, length = [], 0
        length += len(rest)
        if length > max_line_bytes:
            held = []
        elif rest:
            held.append(rest)
    if length:
        yield _Line(length if length > max_line_bytes else b"".join(held), position + length)


def _read_parquet_file(
    file: str, position: int, record_column: RecordColumn, in_smallest_pieces: bool
) -> Iterator[PositionedRecord]:
    """Records of a Parquet file: only the text column, without the row groups before it."""
    with open_decompressed_seekable(file) as stream:
        try:
            source = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise OSError(f"not a Parquet file: {str(error).splitlines()[0]}") from error
        column = choose_text_column(source.schema_arrow.names, record_column.name, file)
        row, group = 0, 0
        while group < source.num_row_groups:
            behind = row + source.metadata.row_group(group).num_rows
            if position < behind:
                break
            row, group = behind, group + 1
        for batch in source.iter_batches(
            1 if in_smallest_pieces else PARQUET_BATCH_ROWS,
            row_groups=range(group, source.num_row_groups),
            columns=[column],
            use_threads=False,
        ):
            before = min(max(position - row, 0), len(batch))
            row += before
            for value in _decode_values_or_errors(batch.column(0).slice(before)):
                where = f"{file}, row {row}"
                columns = {column: value}
                record = extract_record(
                    columns, record_column, where, raise_for_wrong_column=row == 0
                )
                row += 1
                yield PositionedRecord(record, row)


def _decode_values_or_errors(column: pa.Array) -> Sequence[object]:
    """Python values of a column; in place of one that is not UTF-8, its error."""

    def decode_value_or_error(i: int) -> object:
        try:
            return column[i].as_py()
        except UnicodeDecodeError as error:
            return error

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [decode_value_or_error(i) for i in range(len(column))]


def _describe_read_error(file: str, error: Exception) -> str:
    compression = gzip_or_zstd_by_suffix(file)
    # decompressors raise a plain OSError; those of the system have a number
    damaged = f"damaged {compression} file: " if compression and type(error) is OSError else ""
    return damaged + describe_error_in_one_line(error)


FILE_READERS = {
    PARQUET: _read_parquet_file,
    JSON: _read_json_array_or_lines,
    TEXT: _read_text_file_as_one_record,
}
