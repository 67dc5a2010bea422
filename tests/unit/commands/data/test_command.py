"""`python -m flame_accel data` shows the rows of step 1 as they are, and figures that are known."""

import gzip
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from flame_accel.__main__ import main
from flame_accel.commands.data import PICTURE, parse_options
from flame_accel.commands.data.tracing import trace
from flame_accel.data import build_batches, load_tokenizer, open_data
from flame_accel.data.from_options import build_stream
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.tokens.tokenizer import BYTE_TOKENIZER_FOLDER

PNG = b"\x89PNG\r\n\x1a\n"
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
TEXTS = [f"text {i} " + "abc\n" * (i * 5 % 17) for i in range(30)]


def to_lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every form, and a tokenizer with a chat template."""
    house = tmp_path_factory.mktemp("house")
    (house / "texts.jsonl").write_text(to_lines([{"text": text} for text in TEXTS]))
    with gzip.open(house / "packed.jsonl.gz", "wt") as file:
        file.write(to_lines([{"content": text} for text in TEXTS]))
    table = pa.table({"body": [f"row {i} " * (i % 9 + 1) for i in range(25)]})
    pyarrow.parquet.write_table(table, house / "rows.parquet")
    talks = [
        [{"role": "user", "content": f"add 1 to {i}"}, {"role": "assistant", "content": f"{i + 1}"}]
        for i in range(20)
    ]
    (house / "talks.jsonl").write_text(to_lines([{"messages": talk} for talk in talks]))
    shutil.copytree(BYTE_TOKENIZER_FOLDER, house / "chat_tokenizer")
    (house / "chat_tokenizer/chat_template.jinja").write_text(TEMPLATE)
    prepare = {
        "training.dataset": house / "texts.jsonl",
        "model.tokenizer_path": "byte",
        "output": house / "tokens",
        "processes": 1,
    }
    main(["prepare", *to_flags(prepare)])
    return house


def to_flags(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


ROWS = {"training.batch_size": 3, "training.seq_len": 48, "training.gradient_accumulation_steps": 2}
FORMS: dict[str, dict[str, Any]] = {
    "lines": {"training.dataset": "texts.jsonl"},
    "compressed lines": {"training.dataset": "packed.jsonl.gz", "training.varlen": "true"},
    "parquet": {"training.dataset": "rows.parquet", "training.text_column": "body"},
    "token cache": {"training.dataset": "tokens", "training.varlen": "true"},
    "stream": {"training.dataset": "texts.jsonl", "training.streaming": "true"},
    "mixture": {
        "training.dataset": "texts.jsonl,packed.jsonl.gz",
        "training.data_probs": "1,3",
    },
    "conversations": {
        "training.dataset": "talks.jsonl",
        "model.tokenizer_path": "chat_tokenizer",
        "training.varlen": "true",
    },
    "best fit": {
        "training.dataset": "texts.jsonl",
        "training.varlen": "true",
        "training.context_len": 32,
        "training.packing": "best_fit",
    },
    "held out": {
        "training.dataset": "texts.jsonl",
        "evaluation.dataset": "texts.jsonl",
        "evaluation.held_out_share": 0.4,
        "training.batch_size": 1,
    },
}


@pytest.fixture
def say(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`say({"section.option": value}, *arguments)`: what the command prints."""
    monkeypatch.chdir(house)
    # a run in this process may have left its console
    monkeypatch.setattr(logging.getLogger("flame_accel"), "handlers", [])

    def run(options: dict[str, Any], *arguments: str) -> str:
        options = {"model.tokenizer_path": "byte", **ROWS, **options}
        capsys.readouterr()
        main(["data", *to_flags(options), *arguments])
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = [line for line in captured.out.splitlines() if PICTURE not in line]
        assert [line for line in lines if len(line) > 80] == []
        return captured.out

    return run


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_are_those_of_step_1(form, house, monkeypatch):
    monkeypatch.chdir(house)
    options = {"model.tokenizer_path": "byte", **ROWS, "training.num_workers": 0, **FORMS[form]}
    config = parse_options(to_flags(options))
    data = open_data(
        config.training,
        config.evaluation,
        load_tokenizer(str(config.model.tokenizer_path), False),
    )
    step = next(iter(build_batches(config.training, data, rank=0, world_size=1)))
    ids = np.concatenate([batch["input_ids"].numpy().reshape(-1, 48) for batch in step])
    labels = np.concatenate([batch["labels"].numpy().reshape(-1, 48) for batch in step])
    stream = build_stream(config.training, data, num_lanes=len(ids))
    rows = trace(stream, range(len(ids)), 1, lambda skipped: None)
    for row, expected, label in zip(rows, ids, labels, strict=True):
        assert np.array_equal(row.tokens, expected)
        assert np.array_equal(row.targets, label != IGNORED_LABEL)


@pytest.mark.covers_option("training.dataset")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_shown(form, say):
    printed = say(FORMS[form], "--rows", "2")
    assert "rows of step 1, 2 of" in printed
    assert printed.count("\n  lane ") == 2
    assert printed.count("\ndataset ") == (2 if form == "mixture" else 1)
    kinds = {"stream": "a stream of one shard", "token cache": "a token cache"}
    assert f"\n  {kinds.get(form, 'a table')}" in printed


def test_figures_of_data_that_was_counted_by_hand(say, house):
    # 10, 20 and 70 bytes, each with its eos; one without text
    texts = ["a" * 10, "b" * 20, "", "c" * 70]
    (house / "counted.jsonl").write_text(to_lines([{"text": text} for text in texts]))
    options = {
        "training.dataset": "counted.jsonl",
        "training.batch_size": 1,
        "training.gradient_accumulation_steps": 1,
        "training.steps": 300,
        "training.warmup_steps": 1,
    }
    printed = say(options)
    assert "300 steps of 1 rows (batch_size 1 x 1 ranks x 1 micro-batches) of 48" in printed
    assert "records    4, all were read: 3 documents, 1 empty" in printed
    assert "tokens     103\n" in printed and "bytes      0.97 per token" in printed
    assert "median 21, mean 34.3, 11 to 71 tokens" in printed
    assert "1 (33.3%) longer than a row, 48" in printed
    bars = [line.split() for line in printed.splitlines() if "#" in line]
    assert [(bar[0], bar[2], bar[3]) for bar in bars] == [
        ("8", "15", "1"),
        ("16", "31", "1"),
        ("64", "127", "1"),
    ]
    # 47 tokens of a row are new, 48 of the first
    epochs = 300 * 48 * (128 * 47 + 1) / (128 * 48) / 103
    line = next(line for line in printed.splitlines() if "100.00%" in line)
    assert line.split()[-1] == f"{epochs:.2f}"
    assert f"counted.jsonl is read {epochs:.1f} times" in printed


def test_ranks_are_rows_of_a_step(say):
    printed = say(FORMS["lines"], "--ranks", "2", "--rows=12")
    assert "of 12 rows (batch_size 3 x 2 ranks x 2 micro-batches)" in printed
    assert [f"\n  lane {lane}: " in printed for lane in range(13)] == [True] * 12 + [False]


def test_a_sample_is_an_estimate_and_a_cache_is_exact(say):
    total = sum(len(text) + 1 for text in TEXTS)
    assert f"tokens     {total:,}\n" in say(FORMS["lines"])
    estimate = say(FORMS["lines"], "--documents", "10")
    assert "30, of which 10 were read: 10 documents" in estimate and "tokens     about" in estimate
    assert f"tokens     {total:,}\n" in say(FORMS["token cache"], "--documents=10")
    assert ", from one record" in say(FORMS["lines"], "--documents", "1")
    # the end of a stream that was not seen
    stream = say(FORMS["stream"], "--documents=10")
    assert "the first 10 were read" in stream and "not known" in stream
    assert f"tokens     {total:,}\n" in say(FORMS["stream"], "--documents=0")


@pytest.mark.covers_option("training.data_probs")
def test_shares_are_by_tokens(say):
    lines = say(FORMS["mixture"]).splitlines()
    first = next(line.split() for line in lines if "1. texts.jsonl" in line and "%" in line)
    assert first[-4] == "25.00%" and abs(float(first[-3].rstrip("%")) - 25) < 2


def test_what_is_masked_is_shown(say):
    printed = say(FORMS["conversations"], "--rows=1")
    assert ", of conversations\n" in printed
    assert '\n        masked  "<user>add 1 to ' in printed
    assert '\n        loss    "' in printed


@pytest.mark.covers_option("evaluation.held_out_share")
def test_held_out_documents_are_counted(say):
    printed = say(FORMS["held out"])
    assert "held out   40.00% asked for, " in printed
    assert "evaluation on texts.jsonl, 30 documents, 40.00% of them held out" in printed


@pytest.mark.covers_option("training.packing")
def test_packings_are_compared_with_varlen(say):
    assert "best_fit" not in say(FORMS["lines"])
    head = next(line for line in say(FORMS["best fit"]).splitlines() if "in 128 rows" in line)
    assert head.split()[-2:] == ["best_fit", "sequential"]


def test_damaged_records_are_named(say, house):
    (house / "half.jsonl").write_text(to_lines([{"text": text} for text in TEXTS]) + "{half\n")
    printed = say({"training.dataset": "half.jsonl"})
    assert "30 documents, 1 damaged" in printed
    told = printed[printed.index("warning: damaged records") :]
    assert "half.jsonl, line 31" in told and "--training.max_bad_records" in told
    options = {"training.dataset": "half.jsonl", "training.max_bad_records": 2}
    assert "passes over up to 2" in say(options)


def test_the_picture_is_drawn_where_asked_for(say, tmp_path):
    pytest.importorskip("matplotlib")
    printed = say(FORMS["mixture"], "--output", str(tmp_path / "new" / "folder"))
    picture = tmp_path / "new" / "folder" / PICTURE
    assert PICTURE in printed
    assert picture.read_bytes().startswith(PNG)


WRONG = {
    "fewer documents than rows": (["--training.batch_size=20"], 1, "30 documents are fewer than"),
    "no such file": (["--training.dataset=none.jsonl"], 2, r"none.jsonl"),
    "no such option": (["--training.seqlen=3"], 2, "training.seq_len"),
    "no tokenizer": (["--model.tokenizer_path=none"], 2, "--model.tokenizer_path"),
    "model that is not there": (["--model.config=none.json"], 2, "none.json"),
    "all held out": (
        ["--evaluation.dataset=texts.jsonl", "--evaluation.held_out_share=0.999999"],
        1,
        "no text in any of the 30 documents",
    ),
    "nothing to pack": (["--training.seq_len=1"], 2, "training.seq_len"),
    "rows below 0": (["--rows=-1"], 2, "--rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_on_one_screen(case, house, monkeypatch, capsys):
    flags, code, said = WRONG[case]
    monkeypatch.chdir(house)
    options = {"model.tokenizer_path": "byte", **ROWS, **FORMS["lines"]}
    with pytest.raises(SystemExit) as exit:
        main(["data", *to_flags(options), *flags])
    error = capsys.readouterr().err
    assert exit.value.code == code
    assert said in error and "Traceback" not in error
    assert len(error.splitlines()) <= 24


def test_other_commands_take_no_options_of_a_run(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["report", "exp", "--training.steps", "3"])
    assert exit.value.code == 2
    assert "unrecognized arguments: --training.steps 3" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(house, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(house)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = {"model.tokenizer_path": "byte", **ROWS, **FORMS["lines"], "output": tmp_path}
    with pytest.raises(SystemExit) as exit:
        main(["data", *to_flags(options)])
    assert exit.value.code == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_help_names_its_arguments(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["data", "-h"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("--rows", "--documents", "--ranks", "--output"))
    assert "options of a run" in text


def test_a_model_may_be_left_out_and_nothing_else():
    config = parse_options(["--training.dataset=python-stdlib", "--model.tokenizer_path=byte"])
    assert config.training.dataset == "python-stdlib"
