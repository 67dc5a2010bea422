"""The name of a file tells its format and compression."""

import pytest

from flame_accel.data.sources import file_formats as files


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a/b.parquet", files.PARQUET, None),
        ("a.b.jsonl", files.JSON, None),
        ("a.NDJSON.zst", files.JSON, "zstd"),
        ("a.json.gz", files.JSON, "gzip"),
        ("a.jsonl.xz", files.TEXT, None),
        ("parquet", files.TEXT, None),
        ("hf://datasets/a/b@1.json/c", files.TEXT, None),
        ("https://a.b/c.jsonl.gz?download=true.txt#x", files.JSON, "gzip"),
        ("a?b.jsonl", files.JSON, None),
    ],
)
def test_names_tell_what_files_are(name: str, kind: str, compression: str | None) -> None:
    assert (files.format_by_suffix_else_text(name), files.gzip_or_zstd_by_suffix(name)) == (
        kind,
        compression,
    )
