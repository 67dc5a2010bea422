"""Local files as a dataset: the files that a path or pattern means, their splits, and opening them.

A plain text file is one document; a record of a JSON or Parquet file is one. How they are read is
in `file_readers`.
"""

import functools
import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from flame_accel.config.errors import UserError
from flame_accel.data.sources.file_formats import JSON, PARQUET, TEXT, format_by_suffix_else_text
from flame_accel.data.sources.file_shards import FileShards
from flame_accel.data.sources.file_table import copy_files_to_cached_table
from flame_accel.data.sources.options import GLOB_CHARACTERS, DatasetOptions
from flame_accel.data.sources.table import Table, check_any_record_readable
from flame_accel.files import is_git_lfs_pointer

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
"""Files that every run folder has; files below one are not data, unless the folder is named."""
RUN_LOCK_FILE = "run.lock"
"""The only file of a run folder while the run's first start reads its data."""

FilesBySplit = dict[str | None, list[Path]]
"""By name of the split; None: of a dataset without splits."""


class LocalPathOrGlob:
    """A file, a folder of files, or a glob pattern.

    Raises:
        UserError: no files, or options that do not apply to them.
    """

    accepts_hf_split_slices = False

    def __init__(self, options: DatasetOptions) -> None:
        path = Path(options.dataset)
        options.check_options_not_given(
            *(("dataset_name",) if path.is_dir() else ("dataset_name", "data_dir", "data_files"))
        )
        self._options = options
        found = list_visible_files_outside_run_folders(
            options.dataset, options.data_dir, options.data_files_list
        )
        records = select_parquet_or_json_or_raise_if_mixed(found, options.error_location)
        # a file that was named is meant, whatever split its own name suggests
        grouped = bool(records) and not path.is_file()
        self._groups: FilesBySplit = (
            group_record_files_by_split_in_path(records) if grouped else {None: found}
        )

    @staticmethod
    def recognizes(options: DatasetOptions) -> bool:
        """Whether the dataset is an existing path or a pattern."""
        return options.is_existing_path_or_has_wildcards

    @property
    def splits(self) -> Sequence[str | None]:
        """The splits that files are named after; [None] where none is."""
        return list(self._groups)

    def open_split(self, split: str | None) -> Table | FileShards:
        """The files of a split: copied into a table, or with `options.streaming` read as they are.

        Raises:
            UserError: no records, no text, or no such column.
        """
        options, files = self._options, self._groups[split]
        _check_no_git_lfs_pointers(files, options.error_location)
        _check_single_text_file_size(files, options.max_document_bytes)
        names = [str(file) for file in files]
        if options.streaming:
            return FileShards(options.dataset, names, options.record_column)
        table = copy_files_to_cached_table(names, options.record_column, name=options.dataset)
        check_any_record_readable(table, options.error_location)
        return table


def list_visible_files_outside_run_folders(
    path: str, data_dir: str | None, patterns: Sequence[str]
) -> list[Path]:
    """Files that a file name, a folder or a glob pattern means, sorted.

    Without hidden files, and without what runs wrote: files in run folders below the folder.

    Args:
        path: file, folder or pattern.
        data_dir: folder within the folder.
        patterns: patterns within the folder; empty: all files in it.
    """
    if GLOB_CHARACTERS.intersection(path) and not Path(path).exists():
        files = [Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file()]
        return sorted(_drop_run_folder_files(files, _folder_before_wildcards(path)))
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
    return sorted(_drop_run_folder_files(files, root))


def select_parquet_or_json_or_raise_if_mixed(
    files: Sequence[Path], error_location: str
) -> list[Path]:
    """Files of records; next to them other files (README, LICENSE) are ignored.

    Returns:
        None of them if all are text, each a document.

    Raises:
        UserError: no files, or JSON next to Parquet.
    """
    records = {
        kind: [file for file in files if format_by_suffix_else_text(file) == kind]
        for kind in (PARQUET, JSON)
    }
    if not files or all(records.values()):
        raise UserError(
            "holds both Parquet and JSON files" if files else "no files found",
            where=error_location,
            remedy="name the files with a pattern, such as 'folder/**/*.parquet'",
        )
    return records[PARQUET] or records[JSON]


def group_record_files_by_split_in_path(record_files: Sequence[Path]) -> FilesBySplit:
    """Files by split; the only key is None where no file is named after one.

    Records whose file or folder is named after a split (train-00000.parquet, test/a.jsonl) belong
    to it, all others to train.
    """
    splits = {file: _split_from_file_or_folder_name(file) for file in record_files}
    if not any(splits.values()):
        return {None: list(record_files)}
    groups: FilesBySplit = {}
    for file, split in splits.items():
        groups.setdefault(split or "train", []).append(file)
    return groups


def _folder_before_wildcards(pattern: str) -> Path:
    """The folder that a glob pattern names before its first special character."""
    parts = Path(pattern).parts
    names = itertools.takewhile(lambda part: not GLOB_CHARACTERS.intersection(part), parts)
    return Path(*names)


def _drop_run_folder_files(files: Sequence[Path], root: Path) -> list[Path]:
    """The files that are not in a run folder below the root; the root itself may be in one."""

    @functools.cache
    def is_in_run_folder(folder: Path) -> bool:
        if folder == root or root not in folder.parents:
            return False
        is_run_folder = all((folder / name).is_file() for name in RUN_FOLDER_FILES)
        is_locked = (folder / RUN_LOCK_FILE).is_file()
        return is_run_folder or is_locked or is_in_run_folder(folder.parent)

    return [file for file in files if not is_in_run_folder(file.parent)]


def _split_from_file_or_folder_name(file: Path) -> str | None:
    """The split that the file's name starts with, or that its folder is named after."""
    word = re.match("[a-z]*", file.name.lower())
    return SPLIT_WORDS.get(word[0] if word else "") or SPLIT_WORDS.get(file.parent.name.lower())


def _check_no_git_lfs_pointers(files: Sequence[Path], error_location: str) -> None:
    pointers = [file for file in files if is_git_lfs_pointer(file)]
    if pointers:
        raise UserError(
            f"{len(pointers)} of {len(files)} files are Git LFS pointers, not the data, such as "
            f"{pointers[0]}",
            where=error_location,
            remedy="run `git lfs pull` in that repository",
        )


def _check_single_text_file_size(files: Sequence[Path], max_document_bytes: int) -> None:
    """Check that a single text file is no larger than a document: it would be the only one."""
    if len(files) > 1 or format_by_suffix_else_text(files[0]) != TEXT:
        return
    size = files[0].stat().st_size
    if size > max_document_bytes:
        raise UserError(
            f"a text file is one document, and this one has {size} bytes, more than "
            f"training.max_document_bytes = {max_document_bytes}",
            where=str(files[0]),
            remedy='write one document per line of a .jsonl file: {"text": "..."}',
        )
