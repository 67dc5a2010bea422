"""Typing errors: every one is refused, and the right name is the first that is suggested."""

import random
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from flame_accel.config import ConfigError, parse
from flame_accel.config.flame_aliases import FLAME_OPTIONS
from flame_accel.config.schema import options

REQUIRED = ["--model.config", "org/model", "--training.dataset", "python-stdlib"]
OPTIONS = {**options(), **FLAME_OPTIONS}
NEGATIONS = [name.replace(".", ".no_") for name, option in OPTIONS.items() if option.kind is bool]
SECTIONS = {name.partition(".")[0] for name in OPTIONS}
LETTERS = string.ascii_lowercase + string.digits + "_-."


def single_edits(right: str, rng: random.Random) -> list[str]:
    """One of each kind at one place: a character deleted, inserted, replaced, two swapped."""
    at = rng.randrange(len(right))
    return [
        right[:at] + right[at + 1 :],
        right[:at] + rng.choice(LETTERS) + right[at:],
        right[:at] + rng.choice(LETTERS) + right[at + 1 :],
        right[:at] + right[at : at + 2][::-1] + right[at + 2 :],
    ]


def typing_errors(names: list[str], number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Pairs (wrong, right) that differ by a single edit, none of which is another right name."""
    rng = random.Random(seed)
    # a dash counts as an underscore
    known = {*OPTIONS, *NEGATIONS}
    while number:
        right = rng.choice(names)
        wrong = rng.choice(single_edits(right, rng))
        if wrong.replace("-", "_") not in known:
            number -= 1
            yield wrong, right


def refused(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse([*REQUIRED, *flags])
    [problem] = caught.value.problems
    return str(problem)


def test_300_mistyped_flags_are_refused_with_the_right_name():
    pairs = list(typing_errors([*OPTIONS, *NEGATIONS], 300, seed=5))
    suggested = [f"Did you mean --{right}?" in refused(f"--{wrong}") for wrong, right in pairs]
    assert sum(suggested) >= 0.98 * len(pairs)


@pytest.mark.parametrize("suffix", ["toml", "yaml", "json"])
def test_300_mistyped_keys_are_refused_with_the_right_name(suffix: str, tmp_path: Path):
    # a file has no other way to write a key than section, then option
    pairs = [
        (wrong, right)
        for wrong, right in typing_errors([*OPTIONS], 150, seed=6)
        if wrong.count(".") == 1 and "-" not in wrong and all(wrong.split("."))
    ]
    assert len(pairs) >= 100
    path = tmp_path / f"run.{suffix}"
    suggested = 0
    for wrong, right in pairs:
        section, _, key = wrong.partition(".")
        texts = {
            "toml": f"[{section}]\n\n{key} = 1\n",
            "yaml": f"{section}:\n\n  {key}: 1\n",
            "json": f'{{"{section}": {{\n\n"{key}": 1}}}}\n',
        }
        path.write_text(texts[suffix])
        message = refused(f"--job.config_file={path}")
        known = section in SECTIONS
        name = right if known else right.partition(".")[0]
        assert f"{path}:{3 if known else 1}: {wrong if known else section}: there is no" in message
        suggested += f"Did you mean {name}?" in message
    assert suggested >= 0.98 * len(pairs)


def test_mistyped_choices_are_refused_with_the_right_one():
    rng = random.Random(7)
    mistyped = [
        (option.name, wrong, right)
        for option in OPTIONS.values()
        for right in option.choices
        for wrong in single_edits(right, rng)
        # of three letters, one edit leaves too little to tell
        if len(right) > 3 and wrong not in option.choices
    ]
    assert len(mistyped) > 100
    suggested = [
        f"Did you mean {right}?" in refused(f"--{name}={wrong}") for name, wrong, right in mistyped
    ]
    assert sum(suggested) >= 0.95 * len(mistyped)


def test_case_does_not_matter_to_a_suggestion_and_nonsense_gets_the_list():
    assert "Did you mean AdamW?" in refused("--optimizer.name=ADAMW")
    assert "Choose one of wsd, cosine, linear." in refused("--optimizer.scheduler=exponential")
