"""docs/data.md is true: its commands run, on small data of the names that it uses."""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import datasets
import pytest

from flame_accel.__main__ import main
from flame_accel.commands.data import parse_options_without_required_model
from flame_accel.data.tokens.tokenizer import BYTE_TOKENIZER_FOLDER
from tests.helpers.data_command import MARKED_TEMPLATE
from tests.helpers.runs import ROOT

TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()
]
PREFIX = ["python", "-m", "flame_accel"]
SMALL_OPTIONS = ["--training.batch_size=2", "--training.seq_len=64", "--documents=50", "--rows=1"]


@pytest.fixture
def reader_folder(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader who has everything that the page names."""
    data = tmp_path / "my_data"
    (data / "books").mkdir(parents=True)
    shutil.copy(corpus, data / "train.jsonl")
    for number in range(2):
        with gzip.open(data / f"part{number}.jsonl.gz", "wt") as file:
            file.write(corpus.read_text())
    texts = [f"chapter {number} " * 9 for number in range(30)]
    books = datasets.Dataset.from_dict({"body": texts, "text": texts})
    books.to_parquet(data / "books" / "all.parquet")
    books.select_columns(["text"]).save_to_disk(tmp_path / "my_saved_dataset")
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    (data / "talks.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 20)
    shutil.copytree(BYTE_TOKENIZER_FOLDER, tmp_path / "my_chat_tokenizer")
    (tmp_path / "my_chat_tokenizer" / "chat_template.jinja").write_text(MARKED_TEMPLATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_runs(reader_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert len(COMMANDS) > 10
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[:3] == PREFIX and words[3] in ("data", "prepare"), command
        if "HuggingFaceFW" in command:
            # there is no network: that its options are accepted must do
            parse_options_without_required_model(words[4:])
        elif words[3] == "prepare":
            main([*words[3:], "--processes=1"])
        else:
            small = [
                flag
                for flag in SMALL_OPTIONS
                if "context_len" not in command or "seq_len" not in flag
            ]
            main([*words[3:], *small])
            assert "rows of step 1, 1 of 2" in capsys.readouterr().out, command


def test_the_sample_is_what_is_printed(reader_folder: Path, capsys: pytest.CaptureFixture[str]):
    texts = [
        f"def {name}(a, b):\n    while b:\n        a, b = b, a % b\n    return a + {number}\n"
        for number, name in enumerate(("gcd", "lcm", "mean", "power", "digits", "factors"))
    ]
    (reader_folder / "code.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in texts)
    )
    options = ["--training.dataset=code.jsonl", "--model.tokenizer_path=byte", *SMALL_OPTIONS]
    main(["data", *options, "--training.varlen", "--training.seq_len=192"])
    sample = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert sample and sample[1] in capsys.readouterr().out
