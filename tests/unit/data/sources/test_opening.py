"""Every kind of dataset opens to the same records; training and evaluation are kept apart."""

from pathlib import Path

import datasets
import pytest

from flame_accel.config.errors import UserError
from flame_accel.data.sources.held_out import HeldOut, is_held_out
from flame_accel.data.sources.opening import DatasetSide, open_training_and_evaluation
from flame_accel.data.sources.options import (
    DatasetOptions,
)
from flame_accel.data.sources.record_hashes import record_hash
from flame_accel.data.sources.table import Table
from tests.helpers.datasets_on_disk import (
    FILES,
    FULL,
    TEXTS,
    json_lines,
    opened,
    pair,
    records,
    texts,
    write_one,
    write_saved,
    write_saved_dict,
    write_text_folder,
)

SAVED = {"save_to_disk": write_saved}


@pytest.mark.parametrize("source", (FILES | SAVED).values(), ids=(FILES | SAVED).keys())
def test_every_form_is_the_same_table(tmp_path, source):
    table = opened(source(tmp_path))
    assert isinstance(table, Table)
    assert (texts(table), len(table)) == (FULL, 4)
    assert table.name == source(tmp_path)
    expected = Table("memory", datasets.Dataset.from_dict({"text": TEXTS}), "text")
    assert table.sampled_records_fingerprint == expected.sampled_records_fingerprint


def test_bad_records_are_rows_of_the_table(tmp_path):
    content = b'{"text": "a"}\n{"text": b}\n"c"\n{"text": "d"}\n'
    table = opened(write_one("a.jsonl", content)(tmp_path))
    kinds = [record if isinstance(record, str) else record.why for record in records(table)]
    assert kinds == ["a", "damaged", "damaged", "d"]


ERRORS = {
    "no file": (lambda folder: str(folder / "no.jsonl"), "neither a local path nor a dataset"),
    "no match": (lambda folder: str(folder / "*.txt"), "no files found"),
    "no records": (write_one("a.jsonl", b"\n"), r"a\.jsonl: no records found"),
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


def test_an_absent_split_lists_those_that_there_are(tmp_path):
    source = write_text_folder(tmp_path)
    assert texts(opened(source, dataset_split="train")) == FULL
    with pytest.raises(UserError, match=r"no split 'test'; there are: train \(all of it\)"):
        opened(source, dataset_split="test")
    with pytest.raises(UserError, match="no split 'test'; there are: train, validation"):
        opened("python-stdlib", dataset_split="test")


def write_many(path: Path, count: int = 300) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(json_lines([{"text": f"{path.stem} {i}"} for i in range(count)]))
    return str(path)


def kept(side: DatasetSide) -> list[str]:
    """Texts that this side reads."""
    wanted = side.held_out or (lambda record: record)
    found = [wanted(record) for record in records(side.source)]
    return [record for record in found if isinstance(record, str)]


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


def test_several_sets_hold_out_documents_of_the_sources_that_they_name(tmp_path):
    names = [write_many(tmp_path / f"{name}.jsonl") for name in "abcd"]
    sides, sets = open_training_and_evaluation(
        [DatasetOptions(dataset=name) for name in names[:3]],
        [
            DatasetOptions(dataset=name, section="evaluation", set_name=str(number))
            for number, name in enumerate((names[0], names[3], names[2], names[0]))
        ],
        0.1,
    )
    assert [side.held_out is not None for side in sides] == [True, False, True]
    assert [side.held_out is not None for side in sets] == [True, False, True, True]
    # the two sets of one source have the same documents
    assert kept(sets[0]) == kept(sets[3])
    for training, evaluation in ((sides[0], sets[0]), (sides[2], sets[2])):
        assert sorted(kept(training) + kept(evaluation)) == sorted(texts(evaluation.source))


def test_a_set_that_cannot_be_opened_is_named(tmp_path):
    file = write_many(tmp_path / "a.jsonl")
    options = DatasetOptions(
        dataset=file, dataset_split="validation", section="evaluation", set_name="wiki"
    )
    with pytest.raises(UserError) as raised:
        open_training_and_evaluation([DatasetOptions(dataset=file)], [options], 0.1)
    assert raised.value.where == f"evaluation.sets.wiki.dataset {file!r}"
    assert "evaluation.sets.wiki.dataset_split" in str(raised.value.remedy)


def test_without_evaluation_all_documents_are_training(tmp_path):
    file = write_many(tmp_path / "a.jsonl")
    [training], evaluation = open_training_and_evaluation([DatasetOptions(dataset=file)], [], 0.1)
    assert (training.held_out, evaluation) == (None, [])
