"""I/O errors are told from others, also those of Rust; a failed read is tried again."""

import errno

import pytest

from flame_accel import io_errors
from flame_accel.io_errors import describe_if_io_error, is_failed_read, retry_failed_reads

OF_RUST = RuntimeError("Error while serializing: I/O error: no room (os error 28)")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space", "a"), "No space (a)"),
        (OSError(errno.EXDEV, "Other disk", "a", None, "b"), "Other disk (a -> b)"),
        (OSError("a message"), "a message"),
        (OF_RUST, "No space left on device"),
        (ValueError("wrong"), None),
    ],
)
def test_an_io_error_is_described_and_no_other(error: Exception, text: str | None):
    assert describe_if_io_error(error) == text


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (OSError(errno.EIO, "broken"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (OF_RUST, True),
        (FileNotFoundError(errno.ENOENT, "missing"), False),
        (IsADirectoryError(errno.EISDIR, "a folder"), False),
        (ValueError("wrong"), False),
    ],
)
def test_what_is_missing_is_no_failed_read(error: Exception, failed: bool):
    assert is_failed_read(error) is failed


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(io_errors.time, "sleep", made.append)
    return made


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_read_that_succeeds_in_the_end_returns_what_it_read(pauses: list[float], failures: int):
    errors = iter([OSError(errno.EIO, "broken")] * failures)

    def read() -> str:
        for error in errors:
            raise error
        return "content"

    assert retry_failed_reads(read) == "content"
    assert pauses == [0.5, 2.0][:failures]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_a_read_that_never_succeeds_raises_its_error(pauses: list[float], number: int):
    def read() -> str:
        raise OSError(number, "wrong")

    with pytest.raises(OSError, match="wrong"):
        retry_failed_reads(read)
    assert len(pauses) == (2 if number == errno.EIO else 0)
