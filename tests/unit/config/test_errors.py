"""What a user error says."""

from flame_accel.config import ConfigError, UserError


def test_a_user_error_says_what_where_and_the_way_out() -> None:
    error = UserError("has no text", where="a.jsonl:3", remedy="Add a text column.")
    assert str(error) == "a.jsonl:3: has no text\n    Add a text column."
    assert error.exit_code == 1
    assert str(UserError("no")) == "no"
    assert issubclass(ConfigError, UserError)
