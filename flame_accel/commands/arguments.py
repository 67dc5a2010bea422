"""Types of command-line arguments that several commands share."""

import argparse
from collections.abc import Callable


def argparse_integer_at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not below `minimum`."""

    def parse_integer(word: str) -> int:
        if not word.isdecimal() or int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number >= {minimum}")
        return int(word)

    return parse_integer
