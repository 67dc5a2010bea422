"""Records of one file from any place on: JSON lines, JSON arrays, Parquet, text.

Each comes with the place behind it, where reading goes on as if it had never stopped. What cannot
be read is `Skipped` and says where it stands. How bytes are got at is ``access``' part, what a
record must be ``record``'s.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources import file_access as access
from flame_accel.data.sources import files
from flame_accel.data.sources.record_parsing import Wanted, not_utf8, parse, record_of, too_long

END = 2**62
"""The place behind a file that goes on no further, before which damage lies."""
MARK = b"\xef\xbb\xbf"
"""Byte order mark."""
PARQUET_BATCH_ROWS = 256
PARQUET_BUFFER_BYTES = 1 << 22
"""Read at a time of a column, whatever the size of row groups."""

Placed = tuple[Record | Skipped, int]


def read_records(
    file: str, place: int, *, text_column: str | None, max_bytes: int
) -> Iterator[Placed]:
    """Records of a file from a place on, each with the place behind it.

    A file that cannot be opened, or goes on no further, ends with one damaged record that says so.

    Args:
        file: path or URL.
        place: row of Parquet, element of a JSON array, byte (decompressed) of JSON lines; 0 is the
            start. A text file is one record, its end is 1.
        text_column: column that holds texts or conversations; None: text, content or messages.
        max_bytes: longer records are damaged: the line of JSON lines, otherwise the text.

    Raises:
        UserError: the first record of the file has no such column, or one of another type.
    """
    read = READERS[files.file_format(file)]
    wanted = Wanted(text_column, max_bytes)
    careful = False
    while place < END:
        try:
            for record in read(file, place, wanted, careful):
                yield record
                place = record[1]
            return
        except (OSError, pa.ArrowException) as error:
            # what was torn may still hold some records: once more, in the smallest pieces
            if careful or isinstance(error, access.Unreachable):
                yield Skipped("damaged", file, _damage(file, error)), END
                return
            careful = True


def _text_records(file: str, place: int, wanted: Wanted, careful: bool) -> Iterator[Placed]:
    if place:
        return
    size = 0
    pieces: list[bytes] = []
    with access.open_file(file) as opened:
        if opened.seekable:
            size = opened.stream.seek(0, 2)
        if size <= wanted.max_bytes:
            size = 0
            for piece in access.chunks_from(opened, b"", 0):
                size += len(piece)
                if size <= wanted.max_bytes:
                    pieces.append(piece)
    if size > wanted.max_bytes:
        yield Skipped("damaged", file, too_long(size, wanted.max_bytes)), 1
        return
    try:
        text = b"".join(pieces).decode("utf-8")
    except UnicodeDecodeError as error:
        yield Skipped("damaged", file, not_utf8(error)), 1
        return
    yield text or Skipped("empty", file, "no text"), 1


def _json_records(file: str, place: int, wanted: Wanted, careful: bool) -> Iterator[Placed]:
    """Records of JSON lines, or of one JSON array."""
    with access.open_file(file) as opened:
        head = opened.stream.read(1)
        if head == MARK[:1]:
            head += opened.stream.read(3)
        if head[-1:] != b"[":
            pieces = access.chunks_from(opened, head, place, careful)
            yield from _line_records(pieces, file, place, wanted)
            return
        array = parse(b"".join(access.chunks_from(opened, head, 0)), file)
    if isinstance(array, Skipped):
        yield array, END
        return
    for i in range(place, len(array)):
        yield record_of(array[i], wanted, f"{file}, element {i}", i == 0), i + 1


def _line_records(
    pieces: Iterable[bytes], file: str, place: int, wanted: Wanted
) -> Iterator[Placed]:
    from_start = first = place == 0
    for number, (line, end) in enumerate(_lines(pieces, place, wanted.max_bytes), start=1):
        where = f"{file}, line {number}" if from_start else f"{file}, byte {place}"
        place = end
        if isinstance(line, int):
            record = Skipped("damaged", where, too_long(line, wanted.max_bytes))
        elif not line or line.isspace():
            continue
        else:
            value = parse(line, where)
            skipped = isinstance(value, Skipped)
            record = value if skipped else record_of(value, wanted, where, first)
        first = False
        yield record, end


def _lines(
    pieces: Iterable[bytes], place: int, max_bytes: int
) -> Iterator[tuple[bytes | int, int]]:
    """Lines with the place behind each; of one that is longer than `max_bytes` its length only."""
    # of the line that is open
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


def _parquet_records(file: str, place: int, wanted: Wanted, careful: bool) -> Iterator[Placed]:
    """Records of a Parquet file: of its text's column, without the row groups before the place."""
    with access.open_seekable(file) as stream:
        try:
            source = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise OSError(f"not a Parquet file: {str(error).splitlines()[0]}") from error
        column = files.choose_text_column(source.schema_arrow.names, wanted.column, file)
        row, group = 0, 0
        while group < source.num_row_groups:
            behind = row + source.metadata.row_group(group).num_rows
            if place < behind:
                break
            row, group = behind, group + 1
        for batch in source.iter_batches(
            1 if careful else PARQUET_BATCH_ROWS,
            row_groups=range(group, source.num_row_groups),
            columns=[column],
            use_threads=False,
        ):
            before = min(max(place - row, 0), len(batch))
            row += before
            for value in _values(batch.column(0).slice(before)):
                where = f"{file}, row {row}"
                yield record_of({column: value}, wanted, where, row == 0), row + 1
                row += 1


def _values(column: pa.Array) -> Sequence[Any]:
    """Python values; for one that is not UTF-8 the error itself."""

    def value(i: int) -> object:
        try:
            return column[i].as_py()
        except UnicodeDecodeError as error:
            return error

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [value(i) for i in range(len(column))]


def _damage(file: str, error: Exception) -> str:
    compression = files.file_compression(file)
    # decompressors raise it bare; what the system says has a number
    damaged = f"damaged {compression} file: " if compression and type(error) is OSError else ""
    return damaged + access.describe(error)


READERS = {files.PARQUET: _parquet_records, files.JSON: _json_records, files.TEXT: _text_records}
