"""The sources of the Python standard library as a dataset: real text that every machine has.

One file is one document. The split is by file, through a hash of its path within the library, so
that a file stays on its side from one Python version to the next.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset

from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.table import Table, build_table_and_check_any_readable

DATASET_NAME = "python-stdlib"
# tests repeat themselves; the others are not part of the library; _sysconfigdata lists the build
# of one machine
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
SKIPPED_PREFIX = "_sysconfigdata"
VALIDATION_SHARE = 0.03
"""Largest share of the files that validation takes."""
VALIDATION_BYTES = 200_000
"""Largest size of all validation files together: a second or two of work on a CPU."""


class PythonStdlib:
    """The dataset "python-stdlib", with the splits train and validation."""

    splits: Sequence[str | None] = ("train", "validation")
    accepts_hf_split_slices = False

    def __init__(self, options: DatasetOptions) -> None:
        options.check_options_not_given("dataset_name", "data_dir", "data_files")
        self._options = options

    @staticmethod
    def recognizes(options: DatasetOptions) -> bool:
        """Whether this dataset is named."""
        return options.dataset == DATASET_NAME

    def open_split(self, split: str | None) -> Table:
        """The table of a split, held in memory."""
        texts = read_stdlib_sources(str(split))
        return build_table_and_check_any_readable(self._options, Dataset.from_dict({"text": texts}))


def read_stdlib_sources(split: str, root: Path | None = None) -> list[str]:
    """Texts of a split, in the order of their paths.

    Args:
        split: train or validation.
        root: folder to read; None: the library of the running Python.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    texts = {
        path.relative_to(root).as_posix(): _read_text_empty_if_not_utf8(path)
        for path in _walk_source_files(root)
    }
    texts = {name: text for name, text in texts.items() if text}
    validation = _choose_validation_names_by_hash_and_size(texts)
    return [texts[name] for name in sorted(texts) if (name in validation) == (split != "train")]


def _walk_source_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        # site-packages is often far larger than the library: do not even list it
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIX):
                yield Path(folder, name)


def _read_text_empty_if_not_utf8(path: Path) -> str:
    """Text of a source file; empty if it is not UTF-8, as a few files are on purpose."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _choose_validation_names_by_hash_and_size(texts_by_name: dict[str, str]) -> set[str]:
    """Names of the files that belong to validation."""

    def hash_fraction(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

    names: set[str] = set()
    room = VALIDATION_BYTES
    for name in sorted(
        filter(lambda name: hash_fraction(name) < VALIDATION_SHARE, texts_by_name),
        key=hash_fraction,
    ):
        size = len(texts_by_name[name].encode())
        if size <= room:
            names.add(name)
            room -= size
    return names
