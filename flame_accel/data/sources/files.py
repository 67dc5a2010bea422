"""Which files a path means, what kind of file each is, and which column of it holds the text.

A plain text file is one document; a record of a JSON or Parquet file is one. How they are read is
``readers``' part.
"""

import functools
import glob
import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from flame_accel.config.errors import UserError

READER_VERSION = 2
"""Changes when the same files would give other records, so that copies of them are left alone."""
PARQUET = "parquet"
JSON = "json"
TEXT = "text"
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
RUN_FOLDER_FILES = ("config.toml", "environment.json")
"""Files by which the folder of a run is known; nothing below it is data, unless it is named."""
GLOB_CHARACTERS = frozenset("*?[")
KINDS = {".parquet": PARQUET, ".json": JSON, ".jsonl": JSON, ".ndjson": JSON}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TEXT_COLUMNS = ("text", "content", "messages")
TEXT_COLUMN_FLAG = "--training.text_column"


def find_files(path: str, data_dir: str | None, patterns: Sequence[str]) -> list[Path]:
    """Files that a file name, a folder or a glob pattern means, sorted.

    Hidden files are left out, and what runs wrote: files in run folders below the folder.

    Args:
        path: file, folder or pattern.
        data_dir: folder within the folder.
        patterns: patterns within the folder; none means all of it.
    """
    if GLOB_CHARACTERS.intersection(path) and not Path(path).exists():
        files = [Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file()]
        return sorted(_leave_out_run_folders(files, _named_folder(path)))
    if Path(path).is_file():
        return [Path(path)]
    root = Path(path, data_dir or "")
    found = {file for pattern in patterns or ["**/*"] for file in root.glob(pattern)}
    files = [
        file
        for file in found
        if file.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts
        )
    ]
    return sorted(_leave_out_run_folders(files, root))


def _named_folder(pattern: str) -> Path:
    """The folder that a glob pattern names before its first special character."""
    parts = Path(pattern).parts
    names = itertools.takewhile(lambda part: not GLOB_CHARACTERS.intersection(part), parts)
    return Path(*names)


def _leave_out_run_folders(files: Sequence[Path], root: Path) -> list[Path]:
    """The files that are not in a run folder below the root; the root itself may be in one."""

    @functools.cache
    def is_in_run_folder(folder: Path) -> bool:
        if folder == root or root not in folder.parents:
            return False
        is_run_folder = all((folder / name).is_file() for name in RUN_FOLDER_FILES)
        return is_run_folder or is_in_run_folder(folder.parent)

    return [file for file in files if not is_in_run_folder(file.parent)]


def group_files_by_split(files: Sequence[Path], where: str) -> dict[str | None, list[Path]]:
    """Files that hold documents, by split; the split is None where no file is named after one.

    Where there are records, other files (README, LICENSE) are no documents; and records whose file
    or folder is named after a split (train-00000.parquet, test/a.jsonl) belong to it, those that
    are not to train.

    Raises:
        UserError: no files, or JSON beside Parquet.
    """
    records = {
        kind: [file for file in files if file_format(file) == kind] for kind in (PARQUET, JSON)
    }
    if not files or all(records.values()):
        raise UserError(
            "holds both Parquet and JSON files" if files else "there are no files",
            where=where,
            remedy="name the files with a pattern, such as 'folder/**/*.parquet'",
        )
    chosen = records[PARQUET] or records[JSON]
    splits = {file: _split_word(file) for file in chosen}
    if not any(splits.values()):
        return {None: list(chosen or files)}
    groups: dict[str | None, list[Path]] = {}
    for file, split in splits.items():
        groups.setdefault(split or "train", []).append(file)
    return groups


def choose_text_column(columns: Collection[str], text_column: str | None, where: str) -> str:
    """The column that holds the text.

    Raises:
        UserError: there is none of that name; lists those that there are.
    """
    wanted = (text_column,) if text_column else TEXT_COLUMNS
    for column in wanted:
        if column in columns:
            return column
    raise UserError(
        f"no column {' or '.join(map(repr, wanted))}; there are: {', '.join(columns) or 'none'}",
        where=where,
        remedy=f"name the column that holds the text with {TEXT_COLUMN_FLAG}",
    )


def file_format(file: str | Path) -> str:
    """PARQUET, JSON (lines or an array) or TEXT, by the name of a path or URL."""
    suffixes = [suffix for suffix in _suffixes(file) if suffix not in COMPRESSIONS]
    return KINDS.get("".join(suffixes[-1:]), TEXT)


def file_compression(file: str | Path) -> str | None:
    """gzip, zstd or None, by the name of a path or URL."""
    return COMPRESSIONS.get("".join(_suffixes(file)[-1:]))


def _suffixes(file: str | Path) -> list[str]:
    name = str(file)
    # a URL may say more than the path
    path = re.split("[?#]", name)[0] if "://" in name else name
    return [suffix.lower() for suffix in PurePosixPath(path).suffixes]


def _split_word(file: Path) -> str | None:
    """Split that the file's name starts with, or that its folder is called."""
    word = re.match("[a-z]*", file.name.lower())
    return SPLIT_WORDS.get(word[0] if word else "") or SPLIT_WORDS.get(file.parent.name.lower())
