"""A folder with data of every form, and a function that runs the `data` command in it."""

import gzip
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from flame_accel.__main__ import main
from flame_accel.commands.data import PICTURE
from flame_accel.data.tokens.tokenizer import BYTE_TOKENIZER_FOLDER
from tests.helpers.data_command import MARKED_TEMPLATE, ROW_OPTIONS, TEXTS, to_flags, to_json_lines


@pytest.fixture(scope="package")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every form, and a tokenizer with a chat template."""
    data_folder = tmp_path_factory.mktemp("data_folder")
    (data_folder / "texts.jsonl").write_text(to_json_lines([{"text": text} for text in TEXTS]))
    with gzip.open(data_folder / "packed.jsonl.gz", "wt") as file:
        file.write(to_json_lines([{"content": text} for text in TEXTS]))
    table = pa.table({"body": [f"row {i} " * (i % 9 + 1) for i in range(25)]})
    pyarrow.parquet.write_table(table, data_folder / "rows.parquet")
    talks = [
        [{"role": "user", "content": f"add 1 to {i}"}, {"role": "assistant", "content": f"{i + 1}"}]
        for i in range(20)
    ]
    (data_folder / "talks.jsonl").write_text(to_json_lines([{"messages": talk} for talk in talks]))
    shutil.copytree(BYTE_TOKENIZER_FOLDER, data_folder / "chat_tokenizer")
    (data_folder / "chat_tokenizer/chat_template.jinja").write_text(MARKED_TEMPLATE)
    prepare = {
        "training.dataset": data_folder / "texts.jsonl",
        "model.tokenizer_path": "byte",
        "output": data_folder / "tokens",
        "processes": 1,
    }
    main(["prepare", *to_flags(prepare)])
    return data_folder


@pytest.fixture
def run_data_command(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`run_data_command({"section.option": value}, *arguments)`: what the command prints."""
    monkeypatch.chdir(data_folder)
    # a run in this process may have left its console
    monkeypatch.setattr(logging.getLogger("flame_accel"), "handlers", [])

    def run(options: dict[str, Any], *arguments: str) -> str:
        options = {"model.tokenizer_path": "byte", **ROW_OPTIONS, **options}
        capsys.readouterr()
        main(["data", *to_flags(options), *arguments])
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = [line for line in captured.out.splitlines() if PICTURE not in line]
        assert [line for line in lines if len(line) > 80] == []
        return captured.out

    return run
