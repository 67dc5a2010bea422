"""The help describes the options."""

import os
import re
import resource
import subprocess
import sys

import pytest

from flame_accel.config.derived_defaults import DERIVED_DEFAULTS
from flame_accel.config.help import (
    COMMON_OPTIONS,
    format_help,
    help_texts,
    requested_help_topic_empty_for_common,
)
from flame_accel.config.schema import options, sections


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    left_out = ("RANK", "COLUMNS")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def test_every_option_has_a_help_text_and_refused_ones_say_so() -> None:
    assert list(options()) == list(help_texts())
    assert all(help_texts().values())
    refused = "Refused: compiling the backward pass is not supported."
    assert refused in format_help("experimental.enable_compiled_autograd", width=120)
    assert "Refused" not in format_help("training.steps", width=120)


def run_help(*arguments: str) -> str:
    done = run_python("-m", "flame_accel.config", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def shown_options(text: str) -> list[str]:
    """The options that have an entry in a help text, in its order."""
    return re.findall(r"^  --([a-z0-9_]+\.[a-z0-9_]+) ", text, re.MULTILINE)


def test_help_lists_every_option_with_default_and_meaning() -> None:
    words = " ".join(run_help("--training.steps", "x", "-h", "all").split())
    for option in options().values():
        _, _, rest = words.partition(f" --{option.name} ")
        text = help_texts()[option.name]
        assert text in rest[: len(text) + 300], option.name
        default = option.default
        if default not in ("", ()):
            shown = str(default).lower() if default in (None, True, False) else str(default)
            shown = DERIVED_DEFAULTS.get(option.name, shown)
            assert f"(default: {shown})" in rest[: len(text) + 400], option.name


@pytest.mark.parametrize("arguments", [["-h"], ["--training.steps", "x", "--help"]])
def test_plain_help_shows_the_common_options_and_how_to_see_the_others(
    arguments: list[str],
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = run_help(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown_options(text) == list(COMMON_OPTIONS)
    for name in sections():
        assert name in text[text.index("-h SECTION") :]
    assert "-h all" in text
    # processor time: what a user waits for on an idle machine
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_common_options_are_few_and_grouped_by_section() -> None:
    assert 25 <= len(COMMON_OPTIONS) <= 35
    assert [name for name in options() if name in COMMON_OPTIONS] == list(COMMON_OPTIONS)


def test_a_common_option_takes_one_line() -> None:
    lines = format_help("", width=100).splitlines()
    assert max(map(len, lines)) <= 100
    starts = [n for n, line in enumerate(lines) if line.startswith("  --")]
    assert all(re.match(r"  --|\S|$", lines[n + 1]) for n in starts)


@pytest.mark.parametrize("section", sections())
def test_help_on_a_section_shows_all_of_its_options(section: str) -> None:
    expected = [name for name in options() if name.startswith(f"{section}.")]
    assert shown_options(format_help(section, width=80)) == expected


def test_help_on_one_option_shows_that_option() -> None:
    assert shown_options(format_help("--optimizer.lr", width=80)) == ["optimizer.lr"]


@pytest.mark.parametrize(
    ("topic", "expected"),
    [("trainin", "Did you mean training?"), ("xyzzy", "The sections are job, model,")],
)
def test_help_on_an_unknown_section_names_the_right_ones(topic: str, expected: str) -> None:
    done = run_python("-m", "flame_accel.config", "-h", topic)
    assert (done.returncode, done.stdout) == (2, "")
    assert f'-h = "{topic}": there is no such section or option' in done.stderr
    assert expected in done.stderr and "experimental; all stands" in done.stderr


@pytest.mark.parametrize(
    ("argv", "topic"),
    [
        (["-h"], ""),
        (["--help", "training"], "training"),
        (["--help=all"], "all"),
        (["--training.steps", "5", "-h", "--optimizer.lr", "1"], ""),
        (["--training.steps", "5"], None),
    ],
)
def test_the_topic_of_the_help_follows_the_flag(argv: list[str], topic: str | None) -> None:
    assert requested_help_topic_empty_for_common(argv) == topic


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from flame_accel.config import parse_or_exit\n"
        "try: parse_or_exit(['--help'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    assert run_python("-c", code).stderr == "0 False\n"
