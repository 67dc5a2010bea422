"""Calls of the `datasets` library: its exceptions as errors for users, its progress bars hidden."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetsError

from flame_accel.config.errors import UserError
from flame_accel.data.sources.options import DatasetOptions


@contextmanager
def convert_datasets_errors(
    options: DatasetOptions, what_is_wrong: str, remedy: str
) -> Iterator[None]:
    """Turn exceptions of the library into errors for users.

    Args:
        options: the dataset that is being opened.
        what_is_wrong: what is wrong then.
        remedy: what the user can do.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        # this one only says that there is another
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise UserError(
            f"{what_is_wrong}: {str(cause).strip()}", where=options.error_location, remedy=remedy
        ) from error


@contextmanager
def hide_datasets_progress_bars() -> Iterator[None]:
    """Keep the library's progress bars off the console, where each rank would draw its own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
