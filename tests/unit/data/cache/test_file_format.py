"""Token ids take the smallest type; a manifest that cannot be used is refused."""

from pathlib import Path

import numpy as np
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.cache import file_format
from flame_accel.data.cache.cache_writer import CacheOrigin, write_cache_unless_finished
from flame_accel.data.cache.file_format import MANIFEST
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.files import file_xxh3
from tests.helpers.small_caches import ByteEncoder, RecordList, open_token_cache, read_files


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_tokens_take_the_smallest_type(tmp_path: Path, vocabulary: int, dtype: str):
    class Largest(ByteEncoder):
        def encode(self, record: Record | Skipped) -> Document:
            return Document(np.array([0, vocabulary - 1]))

    origin = CacheOrigin(
        tokenizer_identity="bytes", vocabulary_size=vocabulary, add_bos=False, source={}
    )
    write_cache_unless_finished(RecordList(["a", "b"]), Largest(), tmp_path / "c", origin)
    document = open_token_cache(tmp_path / "c")[1]
    assert isinstance(document, Document)
    assert document.tokens.dtype == dtype
    assert document.tokens.tolist() == [0, vocabulary - 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ("{}", "cannot be read"), ('{"format": 99}', "of format 99")],
)
def test_a_manifest_that_says_nothing_is_refused(cache: Path, content: str, said: str):
    (cache / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=said):
        open_token_cache(cache)


def test_a_folder_without_a_cache_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=f"has no {MANIFEST}"):
        open_token_cache(tmp_path)


def test_the_manifest_has_the_checksums_of_all_files(cache: Path):
    files = {
        name: file
        for shard in file_format.read_manifest(cache)["shards"]
        for name, file in shard["files"].items()
    }
    assert set(files) == set(read_files(cache)) - {MANIFEST}
    for name, file in files.items():
        checksum = file_xxh3(cache / name)
        assert file == {"size": (cache / name).stat().st_size, "xxh3": checksum}
