"""Looks for the user's access token in the files of an upload, so that none is ever uploaded."""

from collections.abc import Iterable
from pathlib import Path

SEARCHED_BLOCK_BYTES = 1 << 22


def find_non_weights_file_with_token(paths: Iterable[Path]) -> Path | None:
    """The first of these files that contains the user's access token; None if none does."""
    from huggingface_hub import get_token

    token = (get_token() or "").encode()
    # weights are numbers
    searched = (path for path in paths if token and path.suffix != ".safetensors")
    return next((path for path in searched if _file_contains(path, token)), None)


def _file_contains(path: Path, token: bytes) -> bool:
    end = b""
    with path.open("rb") as file:
        while block := file.read(SEARCHED_BLOCK_BYTES):
            if token in end + block:
                return True
            end = block[-len(token) :]
    return False
