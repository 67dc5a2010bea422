"""The command takes the options of a run, shows every form of data, and names mistakes."""

import pytest

from flame_accel.__main__ import main
from flame_accel.commands.data import PICTURE, parse_options_without_required_model
from flame_accel.observe.report import vega
from tests.helpers.data_command import FORMS, ROW_OPTIONS, to_flags, to_json_lines

PNG = b"\x89PNG\r\n\x1a\n"


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
def test_mistakes_are_told_on_one_screen(case, data_folder, monkeypatch, capsys):
    flags, code, said = WRONG[case]
    monkeypatch.chdir(data_folder)
    options = {"model.tokenizer_path": "byte", **ROW_OPTIONS, **FORMS["lines"]}
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


def test_the_help_names_its_arguments(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["data", "-h"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("--rows", "--documents", "--ranks", "--output"))
    assert "options of a run" in text


def test_a_model_may_be_left_out_and_nothing_else():
    config = parse_options_without_required_model(
        ["--training.dataset=python-stdlib", "--model.tokenizer_path=byte"]
    )
    assert config.training.dataset == "python-stdlib"


@pytest.mark.covers_option("training.dataset")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_shown(form, run_data_command):
    printed = run_data_command(FORMS[form], "--rows", "2")
    assert "rows of step 1, 2 of" in printed
    assert printed.count("\n  lane ") == 2
    assert printed.count("\ndataset ") == (2 if form == "mixture" else 1)
    kinds = {"stream": "a stream of one shard", "token cache": "a token cache"}
    assert f"\n  {kinds.get(form, 'a table')}" in printed


def test_figures_of_data_that_was_counted_by_hand(run_data_command, data_folder):
    # 10, 20 and 70 bytes, each with its eos; one without text
    texts = ["a" * 10, "b" * 20, "", "c" * 70]
    (data_folder / "counted.jsonl").write_text(to_json_lines([{"text": text} for text in texts]))
    options = {
        "training.dataset": "counted.jsonl",
        "training.batch_size": 1,
        "training.gradient_accumulation_steps": 1,
        "training.steps": 300,
        "training.warmup_steps": 1,
    }
    printed = run_data_command(options)
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


def test_ranks_are_rows_of_a_step(run_data_command):
    printed = run_data_command(FORMS["lines"], "--ranks", "2", "--rows=12")
    assert "of 12 rows (batch_size 3 x 2 ranks x 2 micro-batches)" in printed
    assert [f"\n  lane {lane}: " in printed for lane in range(13)] == [True] * 12 + [False]


def test_the_picture_is_drawn_where_asked_for(run_data_command, tmp_path):
    printed = run_data_command(FORMS["mixture"], "--output", str(tmp_path / "new" / "folder"))
    picture = tmp_path / "new" / "folder" / PICTURE
    assert PICTURE in printed
    assert picture.read_bytes().startswith(PNG)


def test_without_what_draws_it_says_what_to_install(data_folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(data_folder)
    monkeypatch.setattr(vega, "PACKAGE", "a-package-that-nobody-has")
    options = {"model.tokenizer_path": "byte", **ROW_OPTIONS, **FORMS["lines"], "output": tmp_path}
    with pytest.raises(SystemExit) as exit:
        main(["data", *to_flags(options)])
    assert exit.value.code == 1
    assert "pip install vl-convert-python" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
