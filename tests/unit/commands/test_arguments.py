"""Arguments of commands: options of a run, and whole numbers from a minimum on."""

import argparse

import pytest

from flame_accel.__main__ import main
from flame_accel.commands.arguments import (
    add_run_options,
    argparse_integer_at_least,
    parse_run_option,
)


@pytest.mark.parametrize(("word", "expected"), [("1", 1), ("12", 12), ("007", 7)])
def test_a_whole_number_from_the_minimum_on_is_taken(word, expected):
    assert argparse_integer_at_least(1)(word) == expected


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "", "many", "1e3"])
def test_anything_else_is_refused_with_the_rule(word):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a whole number >= 1"):
        argparse_integer_at_least(1)(word)


def test_options_of_a_run_have_their_own_values_choices_and_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = argparse.ArgumentParser()
    add_run_options(parser, "training.dataset", "training.add_bos", "training.varlen")
    add_run_options(parser, "model.custom", action="extend", default=[], help="may be repeated")
    assert vars(parser.parse_args([])) == {
        "dataset": None,
        "add_bos": "auto",
        "varlen": False,
        "custom": [],
    }
    words = "--training.dataset ~/a,$HOME/b --model.custom a,~/b.py --model.custom c"
    given = parser.parse_args(words.split())
    assert given.dataset == "/home/me/a,/home/me/b"
    assert given.custom == ["a", "/home/me/b.py", "c"]
    assert parse_run_option("training.text_column", "$HOME") == "$HOME"


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "--output=x", "--model.tokenizer_path=byte", "--training.dataset=$NOT_SET/a"],
        ["doctor", "--job.dump_folder=$NOT_SET/a"],
        ["tune", "--model.config", "gla_1M", "$NOT_SET/a.json"],
        ["export", "a", "b", "--custom=$NOT_SET/a.py"],
    ],
    ids=lambda command: command[0],
)
def test_a_variable_that_is_not_set_is_named(command, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert "the environment variable NOT_SET is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "--output=x", "--training.dataset=x", "--model.tokenizer_path=none"],
        ["tune", "--model.config", "gla_1M", "none"],
    ],
    ids=lambda command: command[0],
)
def test_no_value_is_refused_where_one_is_required(command, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert "none: is required" in capsys.readouterr().err
