"""The folder that is uploaded of a run: a model of it, with its card and, if asked, logs.

Never hidden files or paths of this machine. The files that `uploaded_files` chooses are staged in a
folder: hard links to those that are uploaded as they are, copies of the others.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from flame_accel import files
from flame_accel.config import Config, load_run_file, to_toml
from flame_accel.config.schema import option_value, options
from flame_accel.hub.card_edits import edit_and_keep_as_generated
from flame_accel.hub.model_card import ModelOrigin, origin_of_checkpoint, write_model_card
from flame_accel.hub.remote_code import write_remote_code_if_needed
from flame_accel.hub.uploaded_files import (
    CONFIG_FILE,
    has_checkpoint_manifest,
    select_files_of_complete_model_or_raise,
)
from flame_accel.json_text import parse_json_text
from flame_accel.models import load_model_config
from flame_accel.observe import get_logger, title_run, write_report
from flame_accel.observe.evaluations_file import EVALUATIONS_FILE
from flame_accel.observe.metrics_file import METRICS_FILE

LOGS_FOLDER = "training"
"""Folder of the logs in the repository."""
CARD = "README.md"
EXAMPLE_PATH = re.compile(r'^path = "[^"]*"  # .*$', re.MULTILINE)
EXAMPLE_CALL = re.compile(r'(from_pretrained\(path|pipeline\("text-generation", path)')
"""What the generated examples of a card consist of; a path that the user wrote has no comment."""
NAME_FIELD = re.compile(r'("_?name_or_path":\s*")([^"]*)')
"""Field of a config.json or tokenizer_config.json that holds where it was loaded from."""


def find_run_and_checkpoint_step(folder: Path) -> ModelOrigin:
    """The run and step of a checkpoint, or of an export that lies in its run folder."""
    if has_checkpoint_manifest(folder):
        return origin_of_checkpoint(folder)
    run_folder = folder.absolute().parent
    return ModelOrigin(run_folder=run_folder if (run_folder / CONFIG_FILE).is_file() else None)


def replace_stage_with_model_files(
    model_folder: Path, stage: Path, place: Callable[[Path, Path], None] = files.link_or_copy_file
) -> None:
    """Fills a new folder with the files of a model, which may then be deleted.

    Args:
        model_folder: Holds the model.
        stage: The new folder; one that exists is replaced once all files are there.
        place: Puts a file (the first path) at another place (the second path).

    Raises:
        OSError: A file cannot be placed.
        UserError: The folder holds no model in the Hugging Face format.
    """
    partial = stage.with_name(f"{stage.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    selected = select_files_of_complete_model_or_raise(model_folder)
    if selected.left_out_line is not None:
        get_logger().info("%s: %s", model_folder, selected.left_out_line)
    for name in selected.files:
        place(model_folder / name, partial / name)
    shutil.rmtree(stage, ignore_errors=True)
    files.rename_and_sync(partial, stage)


def add_missing_code_card_logs_and_hide_paths(
    stage: Path,
    run_folder: Path | None,
    card_origin: ModelOrigin,
    *,
    example_repo_id: str,
    example_revision: str,
    include_logs: bool,
) -> None:
    """Completes a folder of linked files: code, card and logs; no path of this machine.

    Args:
        stage: What `replace_stage_with_model_files` filled; no file that it is linked to changes.
        run_folder: The run that the model belongs to; None if it is not known.
        card_origin: Its run and step, for the card of a model that has none.
        example_repo_id: Repository, and
        example_revision: branch from which the examples of the card load the model.
        include_logs: Whether to add the logs of the run.
    """
    # an export carries its code already, and may be of an architecture that is not known here
    if "auto_map" not in parse_json_text((stage / "config.json").read_bytes()):
        write_remote_code_if_needed(stage, load_model_config(str(stage)))
    if not (stage / CARD).exists():
        # what a user wrote into the card of the export stays in those of the checkpoints
        exported = card_origin.run_folder / "hf" if card_origin.run_folder is not None else None
        write_model_card(stage, card_origin, earlier_card_folder=exported)
    _name_repository_in_examples(stage / CARD, example_repo_id, example_revision)
    config = _load_run_config_if_file_exists(run_folder)
    if include_logs and run_folder is not None and config is not None:
        _write_config_copy_metrics_and_draw_report(stage / LOGS_FOLDER, run_folder, config)
    _hide_paths_in_card_logs_and_name_fields(stage, _list_local_paths(run_folder, config))


def _name_repository_in_examples(card: Path, repo_id: str, revision: str) -> None:
    """Has the examples that the card came with load from the Hub what is uploaded now."""

    def name(text: str) -> str:
        named, number = EXAMPLE_PATH.subn(f'path = "{repo_id}"', text)
        if number and revision != "main":
            named = EXAMPLE_CALL.sub(rf'\1, revision="{revision}"', named)
        return named

    text = card.read_text(encoding="utf-8", errors="surrogateescape")
    _replace_file_if_text_changed(card, text, edit_and_keep_as_generated(text, name))


def _load_run_config_if_file_exists(run_folder: Path | None) -> Config | None:
    path = run_folder / CONFIG_FILE if run_folder else None
    return load_run_file(path) if path is not None and path.is_file() else None


def _write_config_copy_metrics_and_draw_report(
    logs: Path, run_folder: Path, config: Config
) -> None:
    """Copies the measurements and options of a run, and draws its report from the copies."""
    # an attempt before this one may have made them
    logs.mkdir(exist_ok=True)
    files.write_text_atomically(logs / CONFIG_FILE, to_toml(config))
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        if (run_folder / name).is_file():
            # the run may be writing its next line
            whole, newline, _ = (run_folder / name).read_text(encoding="utf-8").rpartition("\n")
            files.write_text_atomically(logs / name, whole + newline)
    if (logs / METRICS_FILE).is_file():
        title = title_run(config.job.description, run_folder.name)
        write_report(logs, title=title, end_recorded_in=run_folder)


def _list_local_paths(run_folder: Path | None, config: Config | None) -> set[str]:
    """Absolute paths of this machine that texts may contain."""
    found = {str(Path.home()), os.getcwd()}
    if run_folder is not None:
        found.add(str(run_folder.absolute()))
        found.add(str(run_folder.resolve()))
    for name, option in options().items():
        if config is not None and option.path is not None:
            value = option_value(config, name) or ()
            texts = value.split(",") if isinstance(value, str) else value
            found.update(text.strip() for text in texts)
    # a home of / would match everything
    return {path for path in found if path.startswith("/") and len(path) > 1}


def hide_local_paths(text: str, paths: Iterable[str]) -> str:
    """Reduces paths that begin with one of these absolute ones to their last part.

    Args:
        text: Any text.
        paths: Absolute paths.
    """
    for path in sorted(paths, key=len, reverse=True):
        pattern = rf"(?<![\w./-]){re.escape(path)}(/[^\s\"'<>,;:)\]}}]*)?(?![\w-])"
        text = re.sub(pattern, lambda match: PurePath(match[0]).name, text)
    return text


def _hide_paths_in_card_logs_and_name_fields(stage: Path, paths: set[str]) -> None:
    """Hides paths in the card, the logs, and the fields that say where a model was loaded from.

    Tokenizer, templates and code go up as they are: what looks like a path there is part of them.
    """
    for path in [stage / CARD, *sorted((stage / LOGS_FOLDER).rglob("*"))]:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        _replace_file_if_text_changed(
            path, text, edit_and_keep_as_generated(text, lambda text: hide_local_paths(text, paths))
        )
    for path in sorted(stage.glob("*config.json")):
        text = path.read_text(encoding="utf-8")
        hidden = NAME_FIELD.sub(lambda match: match[1] + hide_local_paths(match[2], paths), text)
        _replace_file_if_text_changed(path, text, hidden)


def _replace_file_if_text_changed(path: Path, before: str, after: str) -> None:
    if after != before:
        # in place of the link, not through it
        path.unlink()
        files.write_bytes_atomically(path, after.encode("utf-8", "surrogateescape"))
