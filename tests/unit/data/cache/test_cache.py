"""The token cache: the same bytes however it is made, the documents themselves when it is read."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from flame_accel.config.errors import UserError
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cache import encoding, layout, reader, shards, writer
from flame_accel.data.cache.layout import MANIFEST, UNFINISHED
from flame_accel.data.cache.reader import TokenCache
from flame_accel.data.cache.writer import Progress, Recipe, write_cache
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.sources.record_hashes import HeldOut, record_hash, sample_fingerprint
from flame_accel.files import file_checksum, write_json
from tests.helpers.runs import ROOT

EOS = 256
RECIPE = Recipe(
    tokenizer_identity="bytes", vocabulary_size=257, add_bos=False, source={"dataset": "some"}
)


class Texts(list[Record | Skipped]):
    name = "texts"


class Bytes:
    """The bytes of a text and eos; of a conversation, the loss is for what the assistant says."""

    def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
        return [self.encode(record) for record in records]

    def encode(self, record: Record | Skipped) -> Document | Skipped:
        if isinstance(record, Skipped):
            return record
        if isinstance(record, str):
            return Document(np.array([*record.encode(), EOS], dtype=np.int32))
        said = [
            (byte, message["role"] == "assistant")
            for message in record
            for byte in message["content"].encode()
        ]
        tokens, targets = zip(*said, strict=True)
        return Document(np.array(tokens, dtype=np.int32), np.array(targets))


def make_texts(count: int = 300) -> Texts:
    texts = Texts(f"{i} " + "abc \u00e9" * (i * 37 % 101) for i in range(count))
    texts[7] = Skipped("empty", "texts, record 7", "no text")
    texts[250] = Skipped("empty", "texts, record 250", "no text")
    return texts


def open_cache(folder: Path, **changes: Any) -> TokenCache:
    return TokenCache(folder, **{"tokenizer_identity": "bytes", "add_bos": False, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: Document | Skipped, other: Document | Skipped) -> bool:
    if isinstance(one, Skipped) or isinstance(other, Skipped):
        return type(one) is type(other) and one[0] == other[0]
    if (one.targets is None) != (other.targets is None):
        return False
    targets = one.targets is None or np.array_equal(one.targets, other.targets)
    return targets and np.array_equal(one.tokens, other.tokens)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of several chunks each."""
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 1000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(make_texts(), Bytes(), tmp_path / "cache", RECIPE)
    return tmp_path / "cache"


def test_any_number_of_processes_writes_the_same_bytes(cache: Path, tmp_path: Path):
    expected = contents(cache)
    assert len([name for name in expected if name.endswith(".tokens")]) > 2
    assert max(map(len, expected.values())) <= 50_000
    for processes in (2, 4):
        folder = tmp_path / str(processes)
        assert write_cache(make_texts(), Bytes(), folder, RECIPE, processes=processes)
        assert contents(folder) == expected


def test_a_document_of_the_cache_is_that_of_the_text(cache: Path):
    documents, texts = open_cache(cache), make_texts()
    assert len(documents) == len(texts)
    for found, text in zip(documents, texts, strict=True):
        assert same(found, Bytes().encode(text))
    lengths = [0 if isinstance(t, Skipped) else len(t.encode()) for t in texts]
    assert [documents.bytes_of(i) for i in range(len(texts))] == lengths
    tokens = [n + 1 if n else 0 for n in lengths]
    assert documents.lengths().tolist() == tokens
    assert documents.num_tokens == sum(tokens)
    assert documents.fingerprint == sample_fingerprint(len(texts), lambda i: hash_of(texts[i]))
    for index in (-1, len(texts)):
        with pytest.raises(IndexError):
            documents[index]


def hash_of(record: Record | Skipped) -> int:
    return 0 if isinstance(record, Skipped) else record_hash(record)


def test_tokens_are_views_that_outlive_their_shard(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 1)
    documents = open_cache(cache)
    kept = [document for document in documents if isinstance(document, Document)]
    texts = [text for text in make_texts() if isinstance(text, str)]
    for document, text in zip(kept, texts, strict=True):
        assert not document.tokens.flags.owndata
        assert not document.tokens.flags.writeable
        assert document.tokens.tolist() == [*text.encode(), EOS]


def test_a_cache_can_be_sent_to_another_process(cache: Path):
    documents = open_cache(cache)
    assert isinstance(documents[3], Document)
    assert same(pickle.loads(pickle.dumps(documents))[3], documents[3])


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_tokens_take_the_smallest_type(tmp_path: Path, vocabulary: int, dtype: str):
    class Largest(Bytes):
        def encode(self, record: Record | Skipped) -> Document:
            return Document(np.array([0, vocabulary - 1]))

    recipe = Recipe(
        tokenizer_identity="bytes", vocabulary_size=vocabulary, add_bos=False, source={}
    )
    write_cache(Texts(["a", "b"]), Largest(), tmp_path / "c", recipe)
    document = open_cache(tmp_path / "c")[1]
    assert isinstance(document, Document)
    assert document.tokens.dtype == dtype
    assert document.tokens.tolist() == [0, vocabulary - 1]


def test_conversations_keep_their_targets(tmp_path: Path):
    records = Texts(
        [{"role": "user", "content": f"why {i}?"}, {"role": "assistant", "content": "so" * i}]
        for i in range(1, 150)
    )
    # texts before and between them, which have none
    records[0] = records[70] = "a text"
    write_cache(records, Bytes(), tmp_path / "one", RECIPE)
    write_cache(records, Bytes(), tmp_path / "two", RECIPE, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    documents = open_cache(tmp_path / "one")
    assert layout.read_manifest(tmp_path / "one")["targets"]
    for found, record in zip(documents, records, strict=True):
        assert same(found, Bytes().encode(record))
    assert documents.bytes_of(1) == len("why 2?soso")


@pytest.mark.parametrize("side", [True, False])
def test_a_side_has_the_documents_that_it_has_online(cache: Path, side: bool):
    texts = make_texts()
    online = HeldOut(0.3, "evaluation" if side else "training")
    documents = open_cache(cache, held_out=(0.3, side))
    found = [same(d, Bytes().encode(online(t))) for d, t in zip(documents, texts, strict=True)]
    assert all(found)
    kept = sum(isinstance(document, Document) for document in documents)
    assert 0.15 < kept / len(texts) < 0.85


def die_after(chunks: int, folder: Path, processes: int) -> None:
    def report(progress: Progress) -> None:
        nonlocal chunks
        chunks -= 1
        if not chunks:
            os.kill(os.getpid(), signal.SIGKILL)

    write_cache(make_texts(), Bytes(), folder, RECIPE, processes=processes, report=report)


@pytest.mark.parametrize(("processes", "chunks"), [(1, 1), (1, 12), (2, 20)])
def test_a_killed_prepare_goes_on_to_the_same_bytes(
    cache: Path, tmp_path: Path, processes: int, chunks: int
):
    folder = tmp_path / "killed"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=die_after, args=(chunks, folder, processes))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(UserError, match="not finished"):
        open_cache(folder)
    reports: list[Progress] = []
    write_cache(make_texts(), Bytes(), folder, RECIPE, report=reports.append)
    assert (reports[0].kept > 0) == (chunks > 1)
    assert reports[-1].documents == reports[-1].total == len(make_texts())
    assert contents(folder) == contents(cache)


def test_a_shard_that_an_interruption_damaged_is_made_again(cache: Path):
    expected = contents(cache)
    # what is left when the power fails before the manifest is written
    made_from = layout.read_manifest(cache)
    names = ("format", "tokenizer", "add_bos", "documents", "fingerprint", "source")
    write_json(cache / UNFINISHED, {name: made_from[name] for name in names})
    (cache / MANIFEST).unlink()
    (cache / "shard-00001.tokens").write_bytes(b"")
    write_cache(make_texts(), Bytes(), cache, RECIPE)
    assert contents(cache) == expected


def test_a_finished_cache_is_left_alone(cache: Path):
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert not write_cache(make_texts(), Bytes(), cache, RECIPE)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    (cache / "shard-00001.tokens").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged: shard-00001\.tokens has 0 bytes"):
        write_cache(make_texts(), Bytes(), cache, RECIPE)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_identity": "other"}, "tokenizer was bytes, now other"),
        ({"add_bos": True}, "add_bos was False, now True"),
        ({"source": {"dataset": "another"}}, "dataset was some, now another"),
        ({}, "fingerprint was"),
    ],
    ids=["tokenizer", "bos", "options", "texts"],
)
def test_a_cache_of_something_else_is_refused_or_replaced(
    tmp_path: Path, finished: bool, change: dict[str, Any], said: str
):
    folder, texts = tmp_path / "cache", make_texts()

    def stop(progress: Progress) -> None:
        if not finished:
            raise UserError("stopped")

    try:
        write_cache(texts, Bytes(), folder, RECIPE, report=stop)
    except UserError:
        assert not finished
    recipe = {name: getattr(RECIPE, name) for name in RECIPE.__slots__} | change
    if not change:
        texts[3] = "another text"
    with pytest.raises(UserError, match=said) as error:
        write_cache(texts, Bytes(), folder, Recipe(**recipe))
    assert "--overwrite" in str(error.value)
    assert write_cache(texts, Bytes(), folder, Recipe(**recipe), overwrite=True)
    write_cache(texts, Bytes(), tmp_path / "fresh", Recipe(**recipe))
    assert contents(folder) == contents(tmp_path / "fresh")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"other files: thesis\.tex"):
            write_cache(make_texts(), Bytes(), tmp_path, RECIPE, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_prepare_the_same_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "LOCK_SECONDS", 0.01)
    with (
        FileLock(tmp_path / layout.LOCK),
        pytest.raises(UserError, match="another process"),
    ):
        write_cache(make_texts(), Bytes(), tmp_path, RECIPE)


def test_a_full_disk_is_named_and_the_work_goes_on_later(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = shards.ChecksummedWriter
    with monkeypatch.context() as patched:
        full = "shard-00002.tokens"
        patched.setattr(
            shards,
            "ChecksummedWriter",
            lambda path: real(Path("/dev/full") if path.name == full else path),
        )
        with pytest.raises(UserError, match="no room left") as error:
            write_cache(make_texts(), Bytes(), tmp_path / "full", RECIPE)
    assert str(tmp_path / "full") in str(error.value)
    reports: list[Progress] = []
    write_cache(make_texts(), Bytes(), tmp_path / "full", RECIPE, report=reports.append)
    assert reports[0].kept > 0
    assert contents(tmp_path / "full") == contents(cache)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_cache(make_texts(), Bytes(), tmp_path / "file" / "cache", RECIPE)


def test_a_process_that_is_killed_is_named(tmp_path: Path):
    class Killed(Bytes):
        def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
            os.kill(os.getpid(), signal.SIGKILL)
            return []

    with pytest.raises(UserError, match="lack of memory"):
        write_cache(make_texts(), Killed(), tmp_path / "c", RECIPE, processes=2)


def test_texts_that_change_meanwhile_are_noticed(tmp_path: Path):
    texts = make_texts()

    def change(progress: Progress) -> None:
        texts[-1] = "not what it was"

    with pytest.raises(UserError, match="changed while"):
        write_cache(texts, Bytes(), tmp_path / "c", RECIPE, report=change)


def test_data_without_text_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no text in any of the 3"):
        write_cache(Texts([Skipped("empty")] * 3), Bytes(), tmp_path / "c", RECIPE)


def test_bad_records_stop_the_work_or_keep_their_places(tmp_path: Path):
    texts = make_texts()
    texts[100], texts[200] = (Skipped("damaged", f"line {i}", "not UTF-8") for i in (100, 200))

    def write(limit: int | None, **options: Any) -> None:
        policy = SkipPolicy(limit)
        write_cache(texts, Bytes(), tmp_path / "c", RECIPE, policy=policy, **options)

    with pytest.raises(UserError, match="line 100: not UTF-8"):
        write(None)
    with pytest.raises(UserError, match=r"1 bad records are more than training\.max_bad_records 0"):
        write(0)
    with pytest.raises(UserError, match="record 7: no text"):
        write(0, overwrite=True)
    # two empty ones and two damaged; what the earlier attempts have made is counted again
    with pytest.raises(UserError, match=r"more than training\.max_bad_records 3"):
        write(3, processes=2)
    write(4)
    documents = open_cache(tmp_path / "c")
    assert documents[100] == texts[100]
    assert documents[200] == texts[200]
    assert documents[7] == Skipped("empty", f"{tmp_path / 'c'}, document 7")
    assert len(documents) == len(texts)


def test_what_the_encoder_refuses_says_which_record(tmp_path: Path):
    class Picky(Bytes):
        def encode(self, record: Record | Skipped) -> Document | Skipped:
            refused = isinstance(record, str) and record.startswith("123 ")
            return Skipped("damaged", what="no") if refused else super().encode(record)

    policy = SkipPolicy(9)
    write_cache(make_texts(), Picky(), tmp_path / "c", RECIPE, policy=policy)
    documents = open_cache(tmp_path / "c")
    assert documents[123] == Skipped("damaged", "texts, record 123", "no")
    # the source has a text there
    texts = make_texts()
    assert documents.fingerprint == sample_fingerprint(len(texts), lambda i: hash_of(texts[i]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_identity": "other"}, "tokenizer bytes .* the run has tokenizer other"),
        ({"add_bos": True}, "bos not added; the run has .* bos added"),
    ],
    ids=["tokenizer", "bos"],
)
def test_another_tokenizer_is_refused(cache: Path, change: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said) as error:
        open_cache(cache, **change)
    assert "prepare" in str(error.value)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path, position: int) -> None:
    path.write_bytes(path.read_bytes()[:position])


def lose(path: Path, position: int) -> None:
    path.unlink()


@pytest.mark.parametrize("suffix", ["tokens", "index", "info"])
@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_damage_to_a_small_cache_is_named_when_it_is_opened(
    cache: Path, suffix: str, damage: Callable[[Path, int], None]
):
    damage(cache / f"shard-00001.{suffix}", 100)
    with pytest.raises(UserError, match=rf"shard-00001\.{suffix}") as error:
        open_cache(cache)
    assert "prepare" in str(error.value)


@pytest.fixture
def large(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is too large to be verified at once."""
    monkeypatch.setattr(reader, "VERIFY_AT_OPEN", 0)
    return cache


@pytest.mark.parametrize("suffix", ["tokens", "index", "info"])
def test_a_file_that_is_cut_is_named_however_large_the_cache(large: Path, suffix: str):
    cut(large / f"shard-00001.{suffix}", -1)
    with pytest.raises(UserError, match=rf"shard-00001\.{suffix} has .* bytes, not"):
        open_cache(large)


def test_a_flipped_token_is_named_when_its_document_is_read(large: Path):
    documents = open_cache(large)
    first = documents._firsts[1]
    flip(large / "shard-00001.tokens", 0)
    with pytest.raises(UserError, match=rf"document {first} in shard-00001\.tokens .*CRC-32"):
        documents[first]
    assert isinstance(documents[first + 1], Document)


@pytest.mark.parametrize("byte", range(layout.RECORD.itemsize))
def test_a_flipped_index_is_named_when_its_document_is_read(large: Path, byte: int):
    documents = open_cache(large, held_out=(0.5, True))
    first = documents._firsts[1]
    kept = next(i for i in range(first, 300) if isinstance(documents[i], Document))
    flip(large / "shard-00001.index", (kept - first) * layout.RECORD.itemsize + byte)
    said = rf"document {kept} in .*shard-00001\.(index|tokens)"
    with pytest.raises(UserError, match=said):
        documents[kept]
    assert isinstance(documents[kept + 1], Document | Skipped)
    with pytest.raises(UserError, match=r"shard-00001\.index has other contents"):
        documents.lengths()


def test_a_flipped_target_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "VERIFY_AT_OPEN", 0)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_cache(Texts([said, said]), Bytes(), tmp_path / "c", RECIPE)
    flip(tmp_path / "c" / "shard-00000.targets", 2)
    documents = open_cache(tmp_path / "c")
    assert isinstance(documents[0], Document)
    with pytest.raises(UserError, match=r"document 1 in .*shard-00000\.targets"):
        documents[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ("{}", "cannot be read"), ('{"format": 99}', "of format 99")],
)
def test_a_manifest_that_says_nothing_is_refused(cache: Path, content: str, said: str):
    (cache / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=said):
        open_cache(cache)


def test_a_folder_without_a_cache_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=f"has no {MANIFEST}"):
        open_cache(tmp_path)


def test_the_manifest_has_the_checksums_of_all_files(cache: Path):
    files = {
        name: file
        for shard in layout.read_manifest(cache)["shards"]
        for name, file in shard["files"].items()
    }
    assert set(files) == set(contents(cache)) - {MANIFEST}
    for name, file in files.items():
        checksum = file_checksum(cache / name)
        assert file == {"size": (cache / name).stat().st_size, "xxh3": checksum}


@pytest.mark.slow
def test_the_benchmark_runs():
    command = [sys.executable, "benchmarks/data.py", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("online", "cache", "resume", "memory"):
        assert f"\n{part} " in done.stdout
