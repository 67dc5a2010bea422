"""Values of the wrong type are refused."""

import pytest

from flame_accel.config.schema import options
from tests.helpers.options import only_problem, parse_flags, refusal


def test_whole_numbers_are_numbers_but_not_the_reverse() -> None:
    lr = parse_flags("--optimizer.lr", "1").optimizer.lr
    assert (lr, type(lr)) == (1.0, float)
    assert "--training.steps" in refusal("--training.steps", "1e3")
    assert "--training.steps" in refusal("--training.steps", "1.0")
    assert "--training.steps" in refusal("--training.steps", "true")


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--training.add_bos maybe", "must be one of auto, always, never"),
        ("--optimizer.name SGD", "must be one of AdamW, Adam, Muon"),
        ("--job.description=\udc80", "is not valid UTF-8"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(flags: str, rule: str) -> None:
    message = only_problem(*flags.split(" "))
    assert message.startswith("--")
    assert rule in message
    assert "\n    " in message


def test_every_option_can_be_blamed() -> None:
    """A value of the wrong type is refused for every option that has a type to miss."""
    for option in options().values():
        if option.python_type_name.startswith(("int", "float")) or option.choices:
            assert f"--{option.name} = " in str(refusal(f"--{option.name}=~"))
