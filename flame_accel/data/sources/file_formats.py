"""What a file holds by its name: Parquet, JSON or plain text, and how it is compressed.

How each format is read is in `file_readers`.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Literal

FileFormat = Literal["parquet", "json", "text"]
Compression = Literal["gzip", "zstd"]
PARQUET: FileFormat = "parquet"
JSON: FileFormat = "json"
TEXT: FileFormat = "text"
FORMATS: dict[str, FileFormat] = dict.fromkeys((".json", ".jsonl", ".ndjson"), JSON)
FORMATS[".parquet"] = PARQUET
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}


def format_by_suffix_else_text(file: str | Path) -> FileFormat:
    """PARQUET, JSON (lines or an array) or TEXT, by the name of a path or URL."""
    suffixes = [suffix for suffix in _lowercase_suffixes(file) if suffix not in COMPRESSIONS]
    return FORMATS.get("".join(suffixes[-1:]), TEXT)


def gzip_or_zstd_by_suffix(file: str | Path) -> Compression | None:
    """The compression, gzip or zstd, by the name of a path or URL; None: not compressed."""
    return COMPRESSIONS.get("".join(_lowercase_suffixes(file)[-1:]))


def _lowercase_suffixes(file: str | Path) -> list[str]:
    name = str(file)
    # a URL may have a query and a fragment behind the path
    path = re.split("[?#]", name)[0] if "://" in name else name
    return [suffix.lower() for suffix in PurePosixPath(path).suffixes]
