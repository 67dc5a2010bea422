"""Defaults that depend on other options: the model, the run folder, and the length of the warm-up.

They only apply where the user set nothing, and the resolved configuration holds the results. The
same options always give the same defaults, so that the same command resumes its run.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from flame_accel.config.schema import Config
from flame_accel.config.secrets import mask_secrets
from flame_accel.config.training_options import TrainingConfig, dataset_names

DERIVED_DEFAULTS = {
    "job.dump_folder": "exp/NAME",
    "model.config": "checkpoint.initial_load_path",
    "training.warmup_steps": "200 or less",
}
"""What the help shows as the default of these options."""
_PARENT_FOLDER = "exp"
_MAX_WARMUP_STEPS = 200
_MAX_NAME_LENGTH = 40


def fill_derived_defaults(
    config: Config, given_options: Collection[str], *, run_file: str | None, run_file_config: Config
) -> Config:
    """Fills in the derived defaults of options that the user did not set.

    Args:
        config: All sources together.
        given_options: Names of the options that the user set.
        run_file: Path or name of the run file, if there is one.
        run_file_config: The run file without the flags.
    """
    if config.model.config is None:
        model = replace(config.model, config=config.checkpoint.initial_load_path)
        config = replace(config, model=model)
    job, training = config.job, config.training
    if "job.dump_folder" not in given_options:
        name = derive_run_name(config, run_file, run_file_config)
        job = replace(job, dump_folder=f"{_PARENT_FOLDER}/{name}" if name else _PARENT_FOLDER)
    if "training.warmup_steps" not in given_options:
        wsd = config.optimizer.scheduler == "wsd"
        decay_ratio = config.optimizer.decay_ratio if wsd else 0.0
        warmup_steps = default_warmup_steps(training.steps, decay_ratio)
        training = replace(training, warmup_steps=warmup_steps)
    return replace(config, job=job, training=training)


def default_warmup_steps(steps: int, decay_ratio: float) -> int:
    """A fifth of the steps, at most 200 and at most what the decay of the schedule leaves."""
    return max(0, min(_MAX_WARMUP_STEPS, steps // 5, steps - round(decay_ratio * steps)))


def derive_run_name(config: Config, run_file: str | None, run_file_config: Config) -> str:
    """The name of a run: its run file, or its model and data.

    Flags that replace the model or the data of the run file are added to the name.
    """
    model, data = (
        _model_name_from_config_path_or_empty(config.model.config),
        _joined_dataset_names(config.training),
    )
    if run_file is None:
        parts = [model, data]
    else:
        parts = [_sanitize_for_folder_name(Path(run_file).stem)]
        model_of_file = _model_name_from_config_path_or_empty(run_file_config.model.config)
        parts += [model] * (model != model_of_file)
        parts += [data] * (data != _joined_dataset_names(run_file_config.training))
    return "-".join(filter(None, parts))


def _model_name_from_config_path_or_empty(model_config: str | None) -> str:
    path = Path(mask_secrets(model_config or ""))
    # a folder names the model, its config.json does not
    return _sanitize_for_folder_name(
        path.parent.name if path.name == "config.json" else _last_part_without_extensions(path)
    )


def _joined_dataset_names(training: TrainingConfig) -> str:
    names = []
    for dataset in dataset_names(training):
        # the last part of a glob pattern that is not a pattern itself
        parts = [part for part in Path(mask_secrets(dataset)).parts if not set(part) & set("*?[")]
        names.append(_last_part_without_extensions(Path(parts[-1])) if parts else "")
    return "-".join(
        filter(None, map(_sanitize_for_folder_name, [*names, training.dataset_name or ""]))
    )


def _last_part_without_extensions(path: Path) -> str:
    """The last part of a path without file extensions; a version such as 1.3B is none."""
    return re.sub(r"(\.[A-Za-z]\w*)+$", "", path.name)


def _sanitize_for_folder_name(name: str) -> str:
    """A name that is safe as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._-")[:_MAX_NAME_LENGTH]
