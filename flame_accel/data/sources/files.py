"""Local files as documents: which files a path means, and the texts in them.

A plain text file is one document; a record of a JSON or Parquet file is one. Texts are copied into
the Arrow cache of ``datasets`` (keyed by names, sizes and times of the files), which locks it, so
that of several processes one builds it. Whatever is wrong with a file is reported with its name
and place.
"""

import glob
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from flame_accel.config.errors import UserError

READER_VERSION = 1
"""Changes when the same files would give other texts, so that older caches are left alone."""
PARQUET = "parquet"
JSON = "json"
TEXT = "text"
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
GLOB_CHARACTERS = frozenset("*?[")
PARQUET_BATCH_ROWS = 256


class Record(NamedTuple):
    """A record of a file and where it stands, for messages."""

    where: str
    columns: dict[str, Any]


def find_files(path: str, data_dir: str | None, patterns: Sequence[str]) -> list[Path]:
    """Files that a file name, a folder or a glob pattern means, sorted; hidden ones are left out.

    Args:
        path: file, folder or pattern.
        data_dir: folder within the folder.
        patterns: patterns within the folder; none means all of it.
    """
    if GLOB_CHARACTERS.intersection(path) and not Path(path).exists():
        names = glob.glob(path, recursive=True)
        return sorted(Path(name) for name in names if Path(name).is_file())
    if Path(path).is_file():
        return [Path(path)]
    root = Path(path, data_dir or "")
    found = {file for pattern in patterns or ["**/*"] for file in root.glob(pattern)}
    return sorted(
        file
        for file in found
        if file.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts
        )
    )


def choose_files(files: Sequence[Path], where: str) -> dict[str | None, list[Path]]:
    """Files that hold documents, by split; the split is None where no file is named after one.

    Where there are records, other files (README, LICENSE) are no documents; and records whose file
    or folder is named after a split (train-00000.parquet, test/a.jsonl) belong to it, those that
    are not to train.

    Raises:
        UserError: no files, or JSON beside Parquet.
    """
    records = {kind: [file for file in files if _kind(file) == kind] for kind in (PARQUET, JSON)}
    if not files or all(records.values()):
        raise UserError(
            "holds both Parquet and JSON files" if files else "there are no files",
            where=where,
            remedy="name the files with a pattern, such as 'folder/**/*.parquet'",
        )
    chosen = records[PARQUET] or records[JSON]
    splits = {file: _split_word(file) for file in chosen}
    if not any(splits.values()):
        return {None: list(chosen or files)}
    groups: dict[str | None, list[Path]] = {}
    for file, split in splits.items():
        groups.setdefault(split or "train", []).append(file)
    return groups


def load_files(files: Sequence[Path], text_column: str | None, flag: str) -> Dataset:
    """Texts of the files as a dataset with the one column "text", built once and then mapped.

    Args:
        files: the files, all of one kind.
        text_column: column of records; None takes text, else content.
        flag: option that names the column, for messages.

    Raises:
        UserError: a file cannot be read, a record is damaged, or there is no such column.
    """
    stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = json.dumps([READER_VERSION, text_column, stamps])
    try:
        dataset = Dataset.from_generator(
            _examples,
            features=Features({"text": Value("large_string")}),
            # a tuple: a list would be taken for shards
            gen_kwargs={"files": tuple(files), "text_column": text_column, "flag": flag},
            fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    assert isinstance(dataset, Dataset)
    return dataset


def choose_column(columns: Sequence[str], text_column: str | None, where: str, flag: str) -> str:
    """The column that holds the text.

    Raises:
        UserError: there is none of that name; lists those that there are.
    """
    wanted = (text_column,) if text_column else ("text", "content")
    for column in wanted:
        if column in columns:
            return column
    raise UserError(
        f"no column {' or '.join(map(repr, wanted))}; there are: {', '.join(columns) or 'none'}",
        where=where,
        remedy=f"name the column that holds the text with {flag}",
    )


def _kind(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix != ".gz"][-1:]
    return {".parquet": PARQUET, ".json": JSON, ".jsonl": JSON}.get("".join(suffixes), TEXT)


def _split_word(file: Path) -> str | None:
    """Split that the file's name starts with, or that its folder is called."""
    word = re.match("[a-z]*", file.name.lower())
    return SPLIT_WORDS.get(word[0] if word else "") or SPLIT_WORDS.get(file.parent.name.lower())


def _examples(
    files: Sequence[Path], text_column: str | None, flag: str
) -> Iterator[dict[str, str]]:
    num_documents = 0
    for file in files:
        kind = _kind(file)
        if kind == TEXT:
            yield {"text": _decode(file.read_bytes(), str(file))}
            num_documents += 1
            continue
        records = _json_records(file) if kind == JSON else _parquet_records(file, text_column, flag)
        for where, columns in records:
            column = choose_column(list(columns), text_column, where, flag)
            yield {"text": _checked_text(columns[column], column, where)}
            num_documents += 1
    if not num_documents:
        raise UserError(
            "there are no records",
            where=", ".join(map(str, files[:3])),
            remedy="give a dataset with at least as many documents as a step has rows",
        )


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 at byte {error.start} ({data[error.start : error.end]!r})",
            where=where,
            remedy="convert it with iconv -t UTF-8, or leave it out",
        ) from error


def _checked_text(value: object, column: str, where: str) -> str:
    """Text of a record; a null is an empty document."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"column {column!r} holds {type(value).__name__}, not text",
            where=where,
            remedy="name another column, or turn the values into strings",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"column {column!r} holds half a surrogate pair at character {error.start}",
            where=where,
            remedy="mend or remove the record: it is not valid Unicode",
        ) from error
    return value


def _json_records(file: Path) -> Iterator[Record]:
    """Records of JSON lines, or of one JSON array."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            if stream.read(1) == b"[":
                stream.seek(0)
                records = enumerate(_parse(stream.read(), str(file)))
                yield from (_record(value, f"{file}, element {i}") for i, value in records)
                return
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield _record(_parse(line, where), where)
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(
            f"damaged gzip file: {error}", where=str(file), remedy="fetch or compress it again"
        ) from error


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(_decode(data, where).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON: {error.msg} at column {error.colno}",
            where=where,
            remedy="mend or remove the record",
        ) from error


def _record(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise UserError(
            f"a record must be an object with named columns, not {type(value).__name__}",
            where=where,
            remedy='write records as {"text": "..."}',
        )
    return Record(where, value)


def _parquet_records(file: Path, text_column: str | None, flag: str) -> Iterator[Record]:
    """Records of a Parquet file, with the text's column only."""
    try:
        source = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"not a Parquet file: {str(error).splitlines()[0]}",
            where=str(file),
            remedy="fetch or write it again",
        ) from error
    column = choose_column(source.schema_arrow.names, text_column, str(file), flag)
    number = 0
    for batch in source.iter_batches(PARQUET_BATCH_ROWS, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield Record(f"{file}, row {number}", {column: value})
            number += 1
