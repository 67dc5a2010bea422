"""Command lines with all required options, and what is wrong with others."""

import pytest

from flame_accel.config import Config, ConfigError, parse

REQUIRED = ["--model.config", "org/model", "--training.dataset", "python-stdlib"]


def parse_flags(*flags: str) -> Config:
    """The configuration of flags, with the required options added."""
    return parse([*REQUIRED, *flags])


def config_error(argv: list[str]) -> ConfigError:
    """The error of a command line that must be refused, with exit code 2."""
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert caught.value.exit_code == 2
    return caught.value


def refusal(*flags: str) -> str:
    """The message about flags that must be refused, with the required options added."""
    return str(config_error([*REQUIRED, *flags]))


def only_problem(*flags: str) -> str:
    """The single problem with flags that must be refused, with the required options added."""
    error = config_error([*REQUIRED, *flags])
    assert len(error.problems) == 1, error
    return str(error.problems[0])
