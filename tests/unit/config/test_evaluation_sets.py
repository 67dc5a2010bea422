"""Named validation sets: as flags, and as tables of every format of run files."""

from pathlib import Path

import pytest

from flame_accel.config import load_run_file, to_toml
from flame_accel.config.evaluation_sets import MAIN_SET, EvaluationSet, evaluation_sets
from tests.helpers.options import parse_flags, refusal
from tests.helpers.run_files import parsed, problems, write

WIKI = EvaluationSet(
    name="wiki", dataset="owner/wiki", dataset_split="train[:10%]", data_files="a.txt,b.txt"
)
CODE = EvaluationSet(name="code", dataset="python-stdlib", dataset_split="validation")
FILES = {
    "a.toml": """
        [evaluation.sets]
        code = "python-stdlib:validation"
        [evaluation.sets.wiki]
        dataset = "owner/wiki"
        dataset_split = "train[:10%]"
        data_files = ["a.txt", "b.txt"]
        [evaluation]
        interval = 3
    """,
    "dotted.toml": """
        [evaluation]
        interval = 3
        sets.code = "python-stdlib:validation"
        sets.wiki.dataset = "owner/wiki"
        sets.wiki.dataset_split = "train[:10%]"
        sets.wiki.data_files = "a.txt,b.txt"
    """,
    "inline.toml": """
        [evaluation]
        interval = 3
        sets = { code = "python-stdlib:validation", wiki = { dataset = "owner/wiki", \
dataset_split = "train[:10%]", data_files = "a.txt,b.txt" } }
    """,
    "list.toml": """
        [evaluation]
        interval = 3
        sets = ["code=python-stdlib:validation",
                "wiki=owner/wiki:train[:10%];data_files=a.txt,b.txt"]
    """,
    "a.yaml": """
evaluation:
  interval: 3
  sets:
    code: python-stdlib:validation
    wiki: {dataset: owner/wiki, dataset_split: "train[:10%]", data_files: [a.txt, b.txt]}
    """,
    "a.json": """
        {"evaluation": {"interval": 3, "sets": {"code": "python-stdlib:validation",
         "wiki": {"dataset": "owner/wiki", "dataset_split": "train[:10%]",
                  "data_files": "a.txt,b.txt"}}}}
    """,
}


@pytest.mark.parametrize("name", FILES)
def test_sets_are_tables_of_a_run_file_in_every_format(tmp_path: Path, name: str):
    config = parsed(write(tmp_path / name, FILES[name]))
    assert sorted(evaluation_sets(config.evaluation), key=lambda each: each.name) == [CODE, WIKI]
    assert config.evaluation.interval == 3
    again = write(tmp_path / "again.toml", to_toml(config))
    assert load_run_file(again) == config


@pytest.mark.covers_option("evaluation.sets")
def test_sets_are_flags_and_that_of_evaluation_dataset_is_the_first():
    config = parse_flags(
        "--evaluation.dataset=org/data",
        "--evaluation.dataset_split=test",
        "--evaluation.sets",
        "code=python-stdlib:validation",
        "mqar=synthetic:mqar:pairs=4",
        "plain=hf://datasets/a/b",
    )
    assert evaluation_sets(config.evaluation) == [
        EvaluationSet(name=MAIN_SET, dataset="org/data", dataset_split="test"),
        CODE,
        EvaluationSet(name="mqar", dataset="synthetic:mqar:pairs=4"),
        EvaluationSet(name="plain", dataset="hf://datasets/a/b"),
    ]
    assert [each.is_probe for each in evaluation_sets(config.evaluation)] == [False] * 2 + [
        True,
        False,
    ]


def test_variables_and_home_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DATA", str(tmp_path))
    write(tmp_path / "a.txt", "a")
    [only] = evaluation_sets(parse_flags("--evaluation.sets=a=$DATA/a.txt").evaluation)
    assert only.dataset == f"{tmp_path}/a.txt"
    assert "NO_SUCH is not set" in refusal("--evaluation.sets=a=$NO_SUCH/a.txt")


def test_all_problems_of_sets_are_told_at_once():
    message = refusal(
        "--evaluation.sets",
        *("alone", "empty=", "validation=x", "a b=x", "a=x;dataset_splt=y", "b=x;dataset=y"),
        *("twice=x", "twice=y", "c=/no/such/folder/file.txt", "d=synthetic:mqr"),
        *("e=x:test;dataset_split=y",),
    )
    for part in (
        "has no name and dataset: alone",
        "has no dataset: empty=",
        "validation is the name of the set of evaluation.dataset",
        "not 'a b'",
        "Did you mean dataset_split?",
        "b has no key dataset",
        "names two sets twice",
        "e has dataset_split twice",
        "/no/such/folder/file.txt does not exist",
        "there is no task 'mqr'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[evaluation.sets.a]\nname = "x"', "a must be a table with a dataset"),
        ('[evaluation.sets.a]\ndataset = "x"\nsplit = "y"', "The keys are dataset"),
        ('[evaluation.sets.a]\ndataset = "x"\ndataset_split = 3', "a has no key dataset_split"),
        ('[evaluation.sets.a]\ndataset = "x;y"', "must not have a semicolon"),
        ("[evaluation.sets]\na = 3", "a must be a table"),
        ('[evaluation]\nsets = ["a=x"]\n[evaluation.sets.b]\ndataset = "y"', ""),
    ],
)
def test_a_table_that_is_no_set_is_refused_with_its_line(tmp_path: Path, text: str, message: str):
    found = problems(write(tmp_path / "a.toml", text))
    assert len(found) == 1 and "a.toml:" in found[0] and message in found[0]


def test_validation_at_intervals_needs_a_set():
    assert "nothing to validate on" in refusal("--evaluation.interval=3")
    assert parse_flags("--evaluation.interval=3", "--evaluation.sets=a=x").evaluation.interval == 3
