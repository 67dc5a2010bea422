"""What a user error says."""

import errno

import pytest
import torch

from flame_accel.config import ConfigError, UserError
from flame_accel.config.errors import exit_on_interrupt, explain_lack_of_memory


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    ],
)
def test_a_lack_of_memory_is_explained(error: Exception) -> None:
    with pytest.raises(UserError, match="memory ran out: ") as explained, explain_lack_of_memory():
        raise error
    assert (str(error) or "MemoryError") in explained.value.what


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), OSError(errno.EIO, "I/O error")])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explain_lack_of_memory():
        raise error
    assert raised.value is error
