"""What a user error says."""

import pytest

from flame_accel.config import ConfigError, UserError
from flame_accel.config.errors import exit_on_interrupt


def test_a_user_error_says_what_where_and_the_way_out() -> None:
    error = UserError("has no text", where="a.jsonl:3", remedy="Add a text column.")
    assert str(error) == "a.jsonl:3: has no text\n    Add a text column."
    assert error.exit_code == 1
    assert str(UserError("no")) == "no"
    assert issubclass(ConfigError, UserError)


def test_an_interrupt_ends_a_process_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_interrupt():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
