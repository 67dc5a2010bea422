"""The console: one line per record, a progress bar on a terminal, and log.txt with the same lines.

A line is plain text with its fields in a fixed order; on a terminal, only its beginning is
coloured. Records are made by `meter`. That writing to a broken console does not end a run is taken
care of in `standard_streams`.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from flame_accel.config.secrets import mask_secrets

FIELDS = (
    ("train/loss", "loss {:.4f}"),
    ("optimizer/lr", "lr {:.3e}"),
    ("optimizer/grad_norm", "grad {:.3f}"),
    ("throughput/tokens_per_second", "{:,.0f} tok/s"),
    ("throughput/mfu", "mfu {:.1%}"),
    ("memory/peak_gib", "{:.2f} GiB"),
    ("eval/loss", "eval/loss {:.4f}"),
    ("eval/perplexity", "eval/perplexity {:.3f}"),
    ("eval/bits_per_byte", "eval/bits_per_byte {:.4f}"),
    ("eval/accuracy", "eval/accuracy {:.4f}"),
)

CYAN, YELLOW, PLAIN = "\x1b[36m", "\x1b[33m", "\x1b[0m"
BEGINNING = re.compile(r"step +\d+/\d+ +\d+%|[^:\n]{1,40}(?=: )")
"""The progress of a step, or the subject of a line: the coloured part."""


def get_logger() -> logging.Logger:
    """The run's logger; silent until `setup_console_logging`."""
    return logging.getLogger("flame_accel")


def _mask_secrets_in_message_and_args(record: logging.LogRecord) -> bool:
    """A filter that lets every record through, without secrets."""
    record.msg, record.args = mask_secrets(record.getMessage()), ()
    return True


class _AboveProgressBarHandler(logging.StreamHandler):
    """Writes above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _CyanStartYellowWarningFormatter(logging.Formatter):
    """Colours the beginning of a line cyan, and warnings yellow."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"{YELLOW}{text}{PLAIN}"
        found = BEGINNING.match(text)
        return f"{CYAN}{found[0]}{PLAIN}{text[found.end() :]}" if found else text


KEPT_LOG_RECORDS = 10_000
"""Most records that are kept before the log file is opened."""


def should_color_stdout(colors_enabled: bool) -> bool:
    """Whether standard output gets colours: it is a terminal, and NO_COLOR is not set."""
    return colors_enabled and sys.stdout.isatty() and "NO_COLOR" not in os.environ


def setup_console_logging(*, main_process: bool, colored: bool = True) -> None:
    """Sends the run's log to standard output; ranks other than the main one log only warnings.

    The main process also keeps it in memory until `add_log_file_with_earlier_lines`.
    """
    logger = get_logger()
    logger.handlers.clear()
    logger.propagate = False
    handler = _AboveProgressBarHandler()
    # of the first handler that a record passes, so that the others get it masked
    handler.addFilter(_mask_secrets_in_message_and_args)
    formatter = (
        _CyanStartYellowWarningFormatter if should_color_stdout(colored) else logging.Formatter
    )
    handler.setFormatter(formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    if main_process:
        never = logging.CRITICAL + 1
        logger.addHandler(MemoryHandler(KEPT_LOG_RECORDS, flushLevel=never, flushOnClose=False))
    # progress bars of loading and saving models do not belong into a log
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class _LogFileHandler(logging.FileHandler):
    """Appends to a log file; a full or broken disk ends no run, and is said once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            # the file cannot be opened; what fails later comes from within
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if self._has_failed or not isinstance(error, OSError):
            return
        self._has_failed = True
        logger = get_logger()
        level, text = logging.WARNING, f"{self.baseFilename} cannot be written: {error.strerror}"
        warning = logger.makeRecord(logger.name, level, "", 0, text, (), None)
        for other in logger.handlers:
            if other is not self:
                other.handle(warning)


def log_to_file_only(text: str) -> None:
    """Writes to the log file, if one is open, what the console shows in another way."""
    logger = get_logger()
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, mask_secrets(text), (), None)
    for handler in logger.handlers:
        if isinstance(handler, _LogFileHandler):
            handler.handle(record)


def add_log_file_with_earlier_lines(path: Path) -> None:
    """Appends all that is and has been logged to a file, with date and time."""
    handler = _LogFileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = get_logger()
    for kept in [each for each in logger.handlers if isinstance(each, MemoryHandler)]:
        kept.setTarget(handler)
        kept.flush()
        logger.removeHandler(kept)
    logger.addHandler(handler)


def format_record(
    record: Mapping[str, float], total_steps: int, remaining_seconds: float | None = None
) -> str:
    """One line for a record: progress, its fields in a fixed order, and the time left if known.

    After the last step no time is named: what follows says so itself.
    """
    step = int(record["step"])
    width = len(str(total_steps))
    parts = [f"step {step:>{width}}/{total_steps} {step / total_steps:4.0%}"]
    parts += [text.format(record[key]) for key, text in FIELDS if key in record]
    if remaining_seconds is not None and step < total_steps:
        parts.append(f"ETA {format_seconds(remaining_seconds)}")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def build_progress_bar_on_terminal(
    *, completed_steps: int, total_steps: int, shown: bool, colored: bool
) -> tqdm:
    """A progress bar on a terminal; nothing elsewhere, where the logged lines show the progress."""
    return tqdm(
        total=total_steps,
        initial=completed_steps,
        unit="step",
        disable=not (shown and sys.stdout.isatty()),
        file=sys.stdout,
        dynamic_ncols=True,
        leave=False,
        colour="cyan" if should_color_stdout(colored) else None,
    )
