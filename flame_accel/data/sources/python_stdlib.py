"""The Python standard library's own sources as documents: real text that is there on every machine.

One file is one document. The split is by file, through a hash of its path within the library, so
that a file stays on its side from one Python version to the next. Only this module knows where the
library lies.
"""

import hashlib
import os
import sysconfig
from pathlib import Path

CORPUS = "python-stdlib"
"""Name under which the corpus is a dataset."""
SPLITS = ("train", "validation")
# tests say little and say it often; the others are not the library; _sysconfigdata lists the
# build of one machine
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
SKIPPED_PREFIX = "_sysconfigdata"
VALIDATION_SHARE = 0.03
"""Share of the files that validation may take ..."""
VALIDATION_BYTES = 200_000
"""... as long as they fit into so many bytes: a second or two on a CPU."""


def read_corpus(split: str, root: Path | None = None) -> list[str]:
    """Texts of a split, in the order of their paths.

    Args:
        split: one of ``SPLITS``.
        root: folder to read; None means the running Python's library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    texts = {path.relative_to(root).as_posix(): _read(path) for path in _sources(root)}
    texts = {name: text for name, text in texts.items() if text}
    validation = _validation_names(texts)
    return [texts[name] for name in sorted(texts) if (name in validation) == (split != "train")]


def _sources(root: Path) -> list[Path]:
    sources: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        # site-packages is often far larger than the library: do not even look
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        sources += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIX)
        ]
    return sources


def _read(path: Path) -> str:
    """Text of a source file; empty where it is not UTF-8, as a few files on purpose are not."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _validation_names(texts: dict[str, str]) -> set[str]:
    def rank(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

    names: set[str] = set()
    room = VALIDATION_BYTES
    for name in sorted(filter(lambda name: rank(name) < VALIDATION_SHARE, texts), key=rank):
        size = len(texts[name].encode())
        if size <= room:
            names.add(name)
            room -= size
    return names
