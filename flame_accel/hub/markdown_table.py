"""Tables of a model card in Markdown, and the numbers in their cells.

What the rows say is decided in `card_data_tables` and `card_training_tables`.
"""

import math
from collections.abc import Sequence

NameAndValue = tuple[str, str | None]
"""A row of a table; without a value it is left out."""


def format_titled_table(title: str, rows: Sequence[NameAndValue]) -> str:
    """A heading, in Markdown, and a table; empty if no row has a value."""
    table = format_table_of_known_values(rows)
    return f"{title}\n{table}" if table else ""


def format_table_of_known_values(rows: Sequence[NameAndValue]) -> str:
    """Two columns; rows without a value are left out."""
    known = [(name, value.replace("|", "\\|")) for name, value in rows if value is not None]
    if not known:
        return ""
    lines = ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in known)]
    return "\n".join(lines) + "\n"


def format_integer(value: object) -> str | None:
    """An integer with thousands separators; None for anything else."""
    return f"{value:,}" if isinstance(value, int) else None


def format_four_digits_nan_or_inf(value: float | None) -> str | None:
    """Four digits; what is not finite is said as it is."""
    if value is None:
        return None
    return f"{value:,.4g}" if math.isfinite(value) else str(value)
