"""Every form of source gives its texts in a fixed order; what is wrong is named with its place."""

import gzip
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.sources.corpus import VALIDATION_BYTES, read_corpus
from flame_accel.data.sources.documents import Documents, load_documents

TEXTS = ["first\r\n\ttext", "", "second \U0001f642", "third\n"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def texts(documents: Documents) -> list[str]:
    return [documents[index] for index in range(len(documents))]


def json_lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def records(column: str = "text") -> list[dict]:
    return [{"id": i, column: text} for i, text in enumerate(TEXTS)]


def write_parquet(path: Path, column: str = "text", values: list | None = None) -> None:
    values = TEXTS if values is None else values
    pq.write_table(pa.table({"id": list(range(len(values))), column: values}), path)


def write_text_folder(folder: Path) -> str:
    for name, text in zip(["a.txt", "b/a.py", "b/b.txt", "c.txt"], TEXTS, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    (folder / ".hidden").write_bytes(b"\xff")
    return str(folder)


def write_record_folder(folder: Path) -> str:
    (folder / "1.jsonl").write_bytes(json_lines(records()[:2]))
    (folder / "2.jsonl").write_bytes(json_lines(records()[2:]))
    (folder / "README.md").write_text("no document")
    return str(folder)


def write_one(name: str, content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def write_parquet_file(folder: Path) -> str:
    write_parquet(folder / "a.parquet")
    return str(folder / "a.parquet")


def write_saved(folder: Path) -> str:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    return str(folder / "saved")


SOURCES = {
    "folder of text files": write_text_folder,
    "folder of records": write_record_folder,
    "glob": lambda folder: write_record_folder(folder) + "/*.jsonl",
    "json lines": write_one("a.jsonl", json_lines(records())),
    "json lines under another name": write_one("a.json", json_lines(records())),
    "content column": write_one("a.jsonl", json_lines(records("content"))),
    "byte order mark and blank lines": write_one(
        "a.jsonl", b"\xef\xbb\xbf" + json_lines(records()).replace(b"\n", b"\n\n")
    ),
    "null text": write_one(
        "a.jsonl", json_lines([{"text": TEXTS[0]}, {"text": None}, *records()[2:]])
    ),
    "json array": write_one("a.json", json.dumps(records()).encode()),
    "gzip": write_one("a.jsonl.gz", gzip.compress(json_lines(records()))),
    "parquet": write_parquet_file,
    "save_to_disk": write_saved,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_every_form_gives_the_same_texts(tmp_path: Path, source: Callable[[Path], str]) -> None:
    documents = load_documents(source(tmp_path))
    assert texts(documents) == TEXTS
    assert documents.fingerprint == load_documents(source(tmp_path)).fingerprint


def test_one_text_file_is_one_document(tmp_path: Path) -> None:
    source = write_one("book.md", b"chapter one\n\nchapter two\n")(tmp_path)
    assert texts(load_documents(source)) == ["chapter one\n\nchapter two\n"]


def test_patterns_and_folders_narrow_a_folder(tmp_path: Path) -> None:
    source = write_text_folder(tmp_path)
    assert texts(load_documents(source, data_files="**/*.py, c.txt")) == ["", "third\n"]
    assert texts(load_documents(source, data_dir="b")) == ["", "second \U0001f642"]


def test_records_named_after_splits_are_these_splits(tmp_path: Path) -> None:
    for name in ("train-00000.jsonl", "train-00001.jsonl", "validation.jsonl", "test/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(json_lines([{"text": name}]))
    found = {
        split: texts(load_documents(str(tmp_path), dataset_split=split))
        for split in (None, "validation", "test")
    }
    assert found == {
        None: ["train-00000.jsonl", "train-00001.jsonl"],
        "validation": ["validation.jsonl"],
        "test": ["test/a.jsonl"],
    }
    assert texts(load_documents(str(tmp_path), section="evaluation")) == ["validation.jsonl"]


def test_a_saved_dict_has_its_splits(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "dev")}
    datasets.DatasetDict(**splits).save_to_disk(tmp_path / "saved")
    assert texts(load_documents(str(tmp_path / "saved"))) == ["train"]
    assert texts(load_documents(str(tmp_path / "saved"), dataset_split="dev")) == ["dev"]
    with pytest.raises(UserError, match=r"no split 'validation'; there are: train, dev\n.*eval"):
        load_documents(str(tmp_path / "saved"), section="evaluation")


def test_a_named_dataset_is_loaded_by_datasets(tmp_path: Path) -> None:
    file = write_one("a.jsonl", json_lines(records()))(tmp_path)
    assert texts(load_documents("json", data_files=file)) == TEXTS
    assert len(load_documents("json", data_files=file, dataset_split="train[:2]")) == 2
    with pytest.raises(UserError, match=r'Unknown split "dev"\. Should be one of .*train'):
        load_documents("json", data_files=file, dataset_split="dev")


def test_a_changed_file_is_read_again_and_has_another_fingerprint(tmp_path: Path) -> None:
    first = load_documents(write_one("a.txt", b"one")(tmp_path))
    second = load_documents(write_one("a.txt", b"another")(tmp_path))
    assert (texts(first), texts(second)) == (["one"], ["another"])
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    a = load_documents(write_one("a.txt", b"text")(tmp_path))
    b = load_documents(write_one("b.txt", b"text")(tmp_path / "moved"))
    assert a.fingerprint == b.fingerprint


def _load_in_process(source: str) -> list[str]:
    return texts(load_documents(source))


def test_processes_that_build_the_cache_at_once_agree(tmp_path: Path) -> None:
    source = write_record_folder(tmp_path)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_load_in_process, [source] * 3, chunksize=1) == [TEXTS] * 3


ERRORS = {
    "no file": (lambda folder: str(folder / "no.jsonl"), "neither a local path nor a dataset"),
    "no match": (lambda folder: str(folder / "*.txt"), "there are no files"),
    "no records": (write_one("a.jsonl", b"\n"), r"a\.jsonl: there are no records"),
    "only empty": (write_one("a.jsonl", b'{"text": ""}\n' * 3), "none of its 3 documents has text"),
    "bad line": (
        write_one("a.jsonl", b'{"text": "a"}\n{"text": b}\n'),
        r"a\.jsonl, line 2: not JSON: .* at column 10",
    ),
    "no object": (write_one("a.jsonl", b'{"text": "a"}\n"b"\n'), "line 2: a record must be an ob"),
    "bad element": (write_one("a.json", b'[{"text": "a"}, 3]'), "element 1: a record must be"),
    "no column": (
        write_one("a.jsonl", b'{"title": "a", "body": "b"}\n'),
        r"no column 'text' or 'content'; there are: title, body\n.*--training\.text_column",
    ),
    "no text": (write_one("a.jsonl", b'{"text": 5}\n'), "line 1: column 'text' holds int"),
    "half a surrogate": (
        write_one("a.jsonl", b'{"text": "ab\\ud800"}\n'),
        "line 1: .* half a surrogate pair at character 2",
    ),
    "not UTF-8": (write_one("a.txt", b"abc\xff\xfe"), r"a\.txt: not UTF-8 at byte 3"),
    "not UTF-8 in JSON": (write_one("a.jsonl", b'{"text": "\xff"}\n'), "line 1: not UTF-8 at b"),
    "torn gzip": (
        write_one("a.jsonl.gz", gzip.compress(json_lines(records()))[:-12]),
        r"a\.jsonl\.gz: damaged gzip file",
    ),
    "no parquet": (write_one("a.parquet", b"PAR1 not quite"), r"a\.parquet: not a Parquet file"),
}


@pytest.mark.parametrize(("source", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, source: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_documents(source(tmp_path))


def test_a_parquet_column_without_text_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", "title")
    with pytest.raises(UserError, match=r"a\.parquet: no column .*; there are: id, title"):
        load_documents(str(tmp_path))
    with pytest.raises(UserError, match="row 0: column 'id' holds int"):
        load_documents(str(tmp_path), text_column="id")


def test_an_absent_split_lists_those_that_there_are(tmp_path: Path) -> None:
    source = write_text_folder(tmp_path)
    assert len(load_documents(source, dataset_split="train")) == 4
    with pytest.raises(UserError, match=r"no split 'test'; there are: train \(all of it\)"):
        load_documents(source, dataset_split="test")
    with pytest.raises(UserError, match="no split 'test'; there are: train, validation"):
        load_documents("python-stdlib", dataset_split="test")


def test_parquet_beside_json_is_ambiguous(tmp_path: Path) -> None:
    write_record_folder(tmp_path)
    write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds both Parquet and JSON"):
        load_documents(str(tmp_path))
    assert texts(load_documents(str(tmp_path), data_files="*.parquet")) == TEXTS


def test_options_that_a_source_has_no_use_for_are_refused(tmp_path: Path) -> None:
    source = write_one("a.txt", b"text")(tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.dataset_name, evaluation\.data_dir cannot"):
        load_documents(source, section="evaluation", dataset_name="x", data_dir="y")


def test_progress_bars_come_back(tmp_path: Path) -> None:
    load_documents(write_one("a.txt", b"text")(tmp_path))
    assert not datasets.are_progress_bars_disabled()


def test_the_standard_library_is_split_by_file() -> None:
    train, validation = read_corpus("train"), read_corpus("validation")
    assert not set(train) & set(validation)
    assert sum(map(len, train)) > 5_000_000
    assert VALIDATION_BYTES / 2 < sum(len(text.encode()) for text in validation) <= VALIDATION_BYTES
    assert texts(load_documents("python-stdlib")) == train
    assert texts(load_documents("python-stdlib", section="evaluation")) == validation


def test_the_corpus_leaves_out_what_is_not_the_library(tmp_path: Path) -> None:
    for name in ("a.py", "b/c.py", "test/d.py", "site-packages/e.py", "b/tests/f.py", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "empty.py").write_bytes(b"")
    found = read_corpus("train", tmp_path) + read_corpus("validation", tmp_path)
    assert sorted(found) == ["a.py", "b/c.py"]
