"""Every form of source opens to the same records; training and evaluation are kept apart."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.config.errors import UserError
from flame_accel.data.documents import Record, Skipped
from flame_accel.data.sources.opening import (
    Opened,
    RecordSource,
    open_source,
    open_training_and_evaluation,
)
from flame_accel.data.sources.options import (
    DatasetOptions,
    evaluation_dataset_options,
    shares,
    training_dataset_options,
)
from flame_accel.data.sources.python_stdlib import VALIDATION_BYTES, read_corpus
from flame_accel.data.sources.record_hashes import HeldOut, is_held_out, record_hash
from flame_accel.data.sources.shards import FileShards, NamedShards
from flame_accel.data.sources.table import Table

TEXTS = ["first\r\n\ttext", "", "second \U0001f642", "third\n"]
FULL = [text for text in TEXTS if text]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def opened(dataset: str, **options: Any) -> RecordSource:
    return open_source(DatasetOptions(dataset=dataset, **options))


def records(source: RecordSource) -> list[Record | Skipped]:
    if isinstance(source, Table):
        return [source[index] for index in range(len(source))]
    assert not isinstance(source, Path)
    return [record for shard in range(len(source)) for record, _ in source.read(shard, 0)]


def texts(source: RecordSource) -> list[str]:
    """Every text, and nothing else but records without one."""
    found = records(source)
    assert all(record.why == "empty" for record in found if isinstance(record, Skipped))
    return [record for record in found if isinstance(record, str)]


def json_lines(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def lines(column: str = "text") -> list[dict]:
    return [{"id": i, column: text} for i, text in enumerate(TEXTS)]


def write_text_folder(folder: Path) -> str:
    for name, text in zip(["a.txt", "b/a.py", "b/b.txt", "c.txt"], TEXTS, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    (folder / ".hidden").write_bytes(b"\xff")
    return str(folder)


def write_record_folder(folder: Path) -> str:
    (folder / "1.jsonl").write_bytes(json_lines(lines()[:2]))
    (folder / "2.jsonl").write_bytes(json_lines(lines()[2:]))
    (folder / "README.md").write_text("no document")
    return str(folder)


def write_one(name: str, content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def write_parquet(folder: Path, column: str = "text") -> str:
    pq.write_table(pa.table({"id": [0, 1, 2, 3], column: TEXTS}), folder / "a.parquet")
    return str(folder / "a.parquet")


def write_saved(folder: Path) -> str:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    return str(folder / "saved")


FILES = {
    "folder of text files": write_text_folder,
    "folder of records": write_record_folder,
    "glob": lambda folder: write_record_folder(folder) + "/*.jsonl",
    "json lines": write_one("a.jsonl", json_lines(lines())),
    "content column": write_one("a.jsonl", json_lines(lines("content"))),
    "null text": write_one("a.jsonl", json_lines([lines()[0], {"text": None}, *lines()[2:]])),
    "json array": write_one("a.json", json.dumps(lines()).encode()),
    "gzip": write_one("a.jsonl.gz", gzip.compress(json_lines(lines()))),
    "parquet": write_parquet,
}
SAVED = {"save_to_disk": write_saved}


@pytest.mark.parametrize("source", (FILES | SAVED).values(), ids=(FILES | SAVED).keys())
def test_every_form_is_the_same_table(tmp_path, source):
    table = opened(source(tmp_path))
    assert isinstance(table, Table)
    assert (texts(table), len(table)) == (FULL, 4)
    assert table.name == source(tmp_path)
    expected = Table("memory", datasets.Dataset.from_dict({"text": TEXTS}), "text")
    assert table.fingerprint == expected.fingerprint


@pytest.mark.parametrize("source", FILES.values(), ids=FILES.keys())
def test_files_are_streamed_as_they_are(tmp_path, source):
    stream = opened(source(tmp_path), streaming=True)
    assert isinstance(stream, FileShards)
    assert texts(stream) == FULL


def test_what_lies_in_arrow_is_a_table_all_the_same(tmp_path):
    table = opened(write_saved(tmp_path), streaming=True)
    assert isinstance(table, Table)
    assert texts(table) == FULL


def test_a_token_cache_is_its_folder(tmp_path):
    write_one("flame_accel_tokens.json", b"{}")(tmp_path)
    assert opened(str(tmp_path)) == tmp_path
    assert opened(str(tmp_path), dataset_split="train", streaming=True) == tmp_path
    with pytest.raises(UserError, match=r"no split 'test'; there are: train \(all of it\)"):
        opened(str(tmp_path), dataset_split="test")
    with pytest.raises(UserError, match=r"training\.data_files cannot narrow"):
        opened(str(tmp_path), data_files="*.tokens")


def test_patterns_and_folders_narrow_a_folder(tmp_path):
    source = write_text_folder(tmp_path)
    assert texts(opened(source, data_files="**/*.txt, b/a.py")) == FULL
    assert texts(opened(source, data_files="c.txt", streaming=True)) == ["third\n"]
    assert texts(opened(source, data_dir="b")) == ["second \U0001f642"]


@pytest.mark.parametrize("streaming", [False, True])
def test_records_named_after_splits_are_these_splits(tmp_path, streaming):
    for name in ("train-00000.jsonl", "train-00001.jsonl", "validation.jsonl", "test/a.jsonl"):
        write_one(Path(name).name, json_lines([{"text": name}]))((tmp_path / name).parent)
    found = {
        split: texts(opened(str(tmp_path), dataset_split=split, streaming=streaming))
        for split in (None, "validation", "test")
    }
    assert found == {
        None: ["train-00000.jsonl", "train-00001.jsonl"],
        "validation": ["validation.jsonl"],
        "test": ["test/a.jsonl"],
    }
    assert texts(opened(str(tmp_path), section="evaluation")) == ["validation.jsonl"]
    # a file that was named is meant
    assert texts(opened(str(tmp_path / "validation.jsonl"))) == ["validation.jsonl"]


def write_saved_dict(folder: Path, *splits: str) -> str:
    of_split = {name: datasets.Dataset.from_dict({"text": [name]}) for name in splits}
    datasets.DatasetDict(**of_split).save_to_disk(folder / "saved")
    return str(folder / "saved")


def test_a_saved_dict_has_its_splits(tmp_path):
    source = write_saved_dict(tmp_path, "train", "dev")
    assert texts(opened(source)) == ["train"]
    assert texts(opened(source, dataset_split="dev")) == ["dev"]
    with pytest.raises(UserError, match=r"no split 'validation'; there are: train, dev\n.*eval"):
        opened(source, section="evaluation")


def test_a_named_dataset_is_loaded_by_datasets(tmp_path):
    file = write_one("a.jsonl", json_lines(lines()))(tmp_path)
    assert texts(opened("json", data_files=file)) == FULL
    assert texts(opened("json", data_files=file, dataset_split="train[2:3]")) == [TEXTS[2]]
    with pytest.raises(UserError, match=r'Unknown split "dev"\. Should be one of .*train'):
        opened("json", data_files=file, dataset_split="dev")


def test_a_named_dataset_is_streamed_by_us_or_by_datasets(tmp_path):
    file = write_one("a.jsonl", json_lines(lines()))(tmp_path)
    ours = opened("json", data_files=file, streaming=True)
    assert isinstance(ours, FileShards)
    assert texts(ours) == FULL
    file = write_one("a.csv", b"id,text\n0,one\n1,two\n")(tmp_path)
    theirs = opened("csv", data_files=file, streaming=True)
    assert isinstance(theirs, NamedShards)
    assert texts(theirs) == ["one", "two"]
    with pytest.raises(UserError, match=r"Bad split: dev\. Available splits: \['train'\]"):
        opened("csv", data_files=file, dataset_split="dev", streaming=True)


def test_bad_records_are_rows_of_the_table(tmp_path):
    content = b'{"text": "a"}\n{"text": b}\n"c"\n{"text": "d"}\n'
    table = opened(write_one("a.jsonl", content)(tmp_path))
    kinds = [record if isinstance(record, str) else record.why for record in records(table)]
    assert kinds == ["a", "damaged", "damaged", "d"]


ERRORS = {
    "no file": (lambda folder: str(folder / "no.jsonl"), "neither a local path nor a dataset"),
    "no match": (lambda folder: str(folder / "*.txt"), "there are no files"),
    "no records": (write_one("a.jsonl", b"\n"), r"a\.jsonl: there are no records"),
    "only empty": (write_one("a.jsonl", b'{"text": ""}\n' * 3), "none of its 3 documents has text"),
    "only damaged": (
        write_one("a.jsonl", b'{"text": ""}\n{\n[]\n'),
        r"a\.jsonl, line 2: not JSON: .*none of its 3 documents can be read",
    ),
    "no column": (
        write_one("a.jsonl", b'{"title": "a", "body": "b"}\n'),
        r"no column 'text' or .*; there are: title, body\n.*--training\.text_column",
    ),
    "no text": (write_one("a.jsonl", b'{"text": 5}\n'), "line 1: column 'text' holds int"),
    "not UTF-8": (write_one("a.txt", b"abc\xff\xfe"), r"a\.txt: not UTF-8 at byte 3"),
    "no parquet": (write_one("a.parquet", b"PAR1 not quite"), r"a\.parquet: not a Parquet file"),
    "not all of a saved dataset": (
        lambda folder: str(Path(write_one("state.json", b"{}")(folder)).parent),
        "save_to_disk has not written it",
    ),
}


@pytest.mark.parametrize(("source", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_what_cannot_be_opened_is_named_with_its_place(tmp_path, source, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        opened(source(tmp_path))


def test_a_column_without_text_is_named(tmp_path):
    with pytest.raises(UserError, match="no column 'body'; there are: text"):
        opened(write_saved(tmp_path), text_column="body")
    datasets.Dataset.from_dict({"text": [1, 2]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"column 'text' holds Value\('int64'\), not text"):
        opened(str(tmp_path / "numbers"))
    datasets.Dataset.from_dict({"messages": [["a"], ["b"]]}).save_to_disk(tmp_path / "lists")
    with pytest.raises(UserError, match="column 'messages' holds List"):
        opened(str(tmp_path / "lists"))


@pytest.mark.parametrize("streaming", [False, True])
def test_one_long_text_file_says_what_to_do(tmp_path, streaming):
    source = write_one("books.txt", b"a" * 101)(tmp_path)
    assert texts(opened(source, max_document_bytes=101, streaming=streaming)) == ["a" * 101]
    rule = r"books\.txt: .* 101 bytes, more than training\.max_document_bytes = 100\n.*\.jsonl"
    with pytest.raises(UserError, match=rule):
        opened(source, max_document_bytes=100, streaming=streaming)


def test_an_absent_split_lists_those_that_there_are(tmp_path):
    source = write_text_folder(tmp_path)
    assert texts(opened(source, dataset_split="train")) == FULL
    with pytest.raises(UserError, match=r"no split 'test'; there are: train \(all of it\)"):
        opened(source, dataset_split="test")
    with pytest.raises(UserError, match="no split 'test'; there are: train, validation"):
        opened("python-stdlib", dataset_split="test")


def test_parquet_beside_json_is_ambiguous(tmp_path):
    write_record_folder(tmp_path)
    write_parquet(tmp_path)
    with pytest.raises(UserError, match="holds both Parquet and JSON"):
        opened(str(tmp_path))
    assert texts(opened(str(tmp_path), data_files="*.parquet")) == FULL


def test_options_that_a_source_has_no_use_for_are_refused(tmp_path):
    source = write_one("a.txt", b"text")(tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.dataset_name, evaluation\.data_dir cannot"):
        opened(source, section="evaluation", dataset_name="x", data_dir="y")


def test_progress_bars_come_back(tmp_path):
    opened(write_one("a.txt", b"text")(tmp_path))
    assert not datasets.are_progress_bars_disabled()


def test_the_standard_library_is_split_by_file():
    train, validation = read_corpus("train"), read_corpus("validation")
    assert not set(train) & set(validation)
    assert sum(map(len, train)) > 5_000_000
    assert VALIDATION_BYTES / 2 < sum(len(text.encode()) for text in validation) <= VALIDATION_BYTES
    assert texts(opened("python-stdlib", streaming=True)) == train
    assert texts(opened("python-stdlib", section="evaluation")) == validation


def test_the_corpus_leaves_out_what_is_not_the_library(tmp_path):
    for name in ("a.py", "b/c.py", "test/d.py", "site-packages/e.py", "b/tests/f.py", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "empty.py").write_bytes(b"")
    found = read_corpus("train", tmp_path) + read_corpus("validation", tmp_path)
    assert sorted(found) == ["a.py", "b/c.py"]


def write_many(path: Path, count: int = 300) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(json_lines([{"text": f"{path.stem} {i}"} for i in range(count)]))
    return str(path)


def kept(side: Opened) -> list[str]:
    """Texts that this side reads."""
    wanted = side.held_out or (lambda record: record)
    found = [wanted(record) for record in records(side.source)]
    return [record for record in found if isinstance(record, str)]


def pair(
    training: dict[str, Any], evaluation: dict[str, Any], share: float = 0.1
) -> tuple[list[Opened], Opened]:
    sides, held_out = open_training_and_evaluation(
        training_dataset_options(TrainingConfig(**training)),
        evaluation_dataset_options(EvaluationConfig(**evaluation), TrainingConfig(**training)),
        share,
    )
    assert held_out is not None
    return sides, held_out


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", [None, "train"])
def test_evaluation_on_the_training_data_holds_documents_out(tmp_path, streaming, split):
    file = write_many(tmp_path / "a.jsonl")
    [training], evaluation = pair(
        {"dataset": file, "streaming": streaming, "dataset_split": split},
        # the same file, written in another way
        {"dataset": f"{tmp_path}/../{tmp_path.name}/a.jsonl"},
    )
    assert training.held_out == HeldOut(0.1, "training")
    assert evaluation.held_out == HeldOut(0.1, "evaluation")
    every = [f"a {i}" for i in range(300)]
    assert kept(evaluation) == [text for text in every if is_held_out(record_hash(text), 0.1)]
    assert sorted(kept(training) + kept(evaluation)) == sorted(every)
    assert 0 < len(kept(evaluation)) < 60


def test_a_validation_split_is_taken_where_there_is_one(tmp_path):
    source = write_saved_dict(tmp_path, "train", "validation")
    [training], evaluation = pair({"dataset": source}, {"dataset": source})
    assert (kept(training), kept(evaluation)) == (["train"], ["validation"])
    assert training.held_out is evaluation.held_out is None


SPLITS = {
    "none asked for": (None, None, "train", True),
    "the same": ("train", "train", "train", True),
    "asked for by one": (None, "train", "train", True),
    "training on another": ("test", None, "test", True),
    "others": ("train", "test", "test", False),
    "others by default": (None, "test", "test", False),
}


@pytest.mark.parametrize(("asked", "wanted", "read", "divided"), SPLITS.values(), ids=SPLITS)
def test_only_the_same_split_is_divided(tmp_path, asked, wanted, read, divided):
    source = write_saved_dict(tmp_path, "train", "test")
    [training], evaluation = pair(
        {"dataset": source, "dataset_split": asked},
        {"dataset": source, "dataset_split": wanted},
    )
    assert texts(training.source) == [asked or "train"]
    assert texts(evaluation.source) == [read]
    assert [side.held_out is not None for side in (training, evaluation)] == [divided] * 2


def test_a_named_dataset_without_a_validation_split_is_divided(tmp_path):
    file = write_many(tmp_path / "a.jsonl")
    named = {"dataset": "json", "data_files": file}
    [training], evaluation = pair(named, named)
    assert sorted(kept(training) + kept(evaluation)) == sorted(texts(training.source))
    [training], evaluation = pair(
        {**named, "dataset_split": "train[:90%]"}, {**named, "dataset_split": "train[90%:]"}
    )
    assert training.held_out is evaluation.held_out is None
    assert (len(kept(training)), len(kept(evaluation))) == (270, 30)


def test_other_data_is_not_divided(tmp_path):
    first, second = write_many(tmp_path / "a.jsonl"), write_many(tmp_path / "b.jsonl", 20)
    for other in (
        {"dataset": second},
        {"dataset": str(tmp_path)},
        {"dataset": str(tmp_path), "data_files": "a.jsonl"},
    ):
        [training], evaluation = pair({"dataset": first}, other)
        assert training.held_out is evaluation.held_out is None
    [training], evaluation = pair(
        {"dataset": str(tmp_path), "data_files": "a*"},
        {"dataset": str(tmp_path), "data_files": "b*"},
    )
    assert training.held_out is evaluation.held_out is None


def test_of_a_mixture_only_the_source_that_evaluation_names_is_divided(tmp_path):
    names = [write_many(tmp_path / f"{name}.jsonl") for name in "abc"]
    sides, evaluation = pair({"dataset": ",".join(names)}, {"dataset": names[1]})
    assert [side.held_out is not None for side in sides] == [False, True, False]
    assert evaluation.source is sides[1].source
    assert sorted(kept(sides[1]) + kept(evaluation)) == sorted(texts(evaluation.source))


def test_a_token_cache_is_divided_as_well(tmp_path):
    write_one("flame_accel_tokens.json", b"{}")(tmp_path)
    [training], evaluation = pair({"dataset": str(tmp_path)}, {"dataset": f"{tmp_path}/"})
    assert training == (tmp_path, HeldOut(0.1, "training"))
    assert evaluation == (tmp_path, HeldOut(0.1, "evaluation"))


def test_without_evaluation_all_documents_are_training(tmp_path):
    file = write_many(tmp_path / "a.jsonl")
    [training], evaluation = open_training_and_evaluation([DatasetOptions(dataset=file)], None, 0.1)
    assert (training.held_out, evaluation) == (None, None)


def test_several_datasets_have_options_of_their_own():
    training = TrainingConfig(
        dataset="a, b/c ,d",
        dataset_name=",x,",
        data_files="1.jsonl,,*.txt",
        text_column="body",
        streaming=True,
        max_document_bytes=9,
    )
    common = {"text_column": "body", "streaming": True, "max_document_bytes": 9}
    assert training_dataset_options(training) == [
        DatasetOptions(dataset="a", data_files="1.jsonl", **common),
        DatasetOptions(dataset="b/c", dataset_name="x", **common),
        DatasetOptions(dataset="d", data_files="*.txt", **common),
    ]


def test_one_dataset_keeps_its_commas(tmp_path):
    [options] = training_dataset_options(TrainingConfig(dataset="a", data_files="1.txt, 2.txt"))
    assert options.patterns == ["1.txt", "2.txt"]
    path = write_one("a,b.txt", b"text")(tmp_path)
    assert [
        options.dataset for options in training_dataset_options(TrainingConfig(dataset=path))
    ] == [path]
    # too long for a file's name
    assert len(training_dataset_options(TrainingConfig(dataset=",".join(["name"] * 100)))) == 100


def test_shares_are_divided_by_their_sum():
    assert shares(TrainingConfig(dataset="a")) == (1.0,)
    assert shares(TrainingConfig(dataset="a", data_probs=(0.3,))) == (1.0,)
    assert shares(TrainingConfig(dataset="a,b", data_probs=(3, 1))) == (0.75, 0.25)
