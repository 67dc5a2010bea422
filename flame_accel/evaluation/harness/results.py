"""What lm-eval returns, as records of a run: a record per task, and one per group.

Where they are written is decided in `commands`. Without torch and lm-eval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flame_accel.observe.evaluations_file import Evaluation

NOT_MEASURED = -1.0
"""What the tasks of RULER return for lengths that were not asked for."""
FILE_FORMATS = ("arrow", "audiofolder", "csv", "generator", "imagefolder", "json", "pandas",
                "parquet", "sql", "text", "webdataset", "xml")  # fmt: skip
"""Values of `dataset_path` that name a format of `datasets`, not a dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedModel:
    """Which model the results are of."""

    label: str
    """Where it lies in its run folder, such as hf or checkpoint/step-8."""
    step: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedMetrics:
    """What papers report of a group: metrics by task, and which of them make its average."""

    by_task: Mapping[str, Sequence[str]]
    averaged: Sequence[str]

    @classmethod
    def from_group_metadata(cls, metadata: Mapping[str, Any] | None) -> "ReportedMetrics | None":
        """Those of a group's YAML file; None if it names none."""
        if not metadata or "reported" not in metadata:
            return None
        return cls(by_task=metadata["reported"], averaged=metadata.get("averaged", ()))


def make_records(
    results: Mapping[str, Any],
    model: EvaluatedModel,
    *,
    reported_by_group: Mapping[str, ReportedMetrics],
    results_file: str,
) -> list[Evaluation]:
    """The records of all tasks and groups.

    Args:
        results: As `lm_eval.simple_evaluate` returns it.
        model: What was evaluated.
        reported_by_group: By the name of a group.
        results_file: Where all of the results are, relative to the run folder.
    """
    groups = results.get("groups", {})
    records = [
        _make_task_record(results, task, model, results_file)
        for task in results["results"]
        if task not in results.get("group_subtasks", {})
    ]
    for group, members in results.get("group_subtasks", {}).items():
        metrics = select_metrics(groups.get(group, {}))
        if group in reported_by_group:
            metrics |= compute_average(results, reported_by_group[group])
        if metrics:
            details = _describe_setting(results, members[0]) | {
                "tasks": list(members),
                "results_file": results_file,
            }
            records.append(_make_record(results, group, members[0], model, metrics, details))
    return records


def compute_average(results: Mapping[str, Any], reported: ReportedMetrics) -> dict[str, float]:
    """The mean over a group's tasks of the metric that papers report, as `average`.

    Empty if a task has not been evaluated.
    """
    values = [
        select_metrics(results["results"].get(task, {})).get(metric)
        for task, metrics in reported.by_task.items()
        for metric in metrics
        if metric in reported.averaged
    ]
    known = [value for value in values if value is not None]
    complete = bool(known) and len(known) == len(values)
    return {"average": math.fsum(known) / len(known)} if complete else {}


def select_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a task by metric, standard errors as METRIC_stderr.

    The filter of an answer stands behind the metric where there is one: exact_match,strict.
    """
    return {
        key.removesuffix(",none"): float(value)
        for key, value in result.items()
        if "," in key and isinstance(value, (int, float)) and value != NOT_MEASURED
    }


def name_dataset(config: Mapping[str, Any]) -> str:
    """The dataset of a task: its name on the Hub, or else that of the task, never a path."""
    path = str(config.get("dataset_path") or "")
    is_local = path.startswith((".", "/", "~")) or path in FILE_FORMATS or Path(path).exists()
    return str(config["task"]) if not path or is_local else path


def _make_task_record(
    results: Mapping[str, Any], task: str, model: EvaluatedModel, results_file: str
) -> Evaluation:
    config = results["configs"][task]
    details = _describe_setting(results, task) | {
        "dataset": name_dataset(config),
        "config": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "version": results["versions"].get(task),
        "examples": results["n-samples"][task]["effective"],
        "higher_is_better": results["higher_is_better"].get(task, {}),
        "results_file": results_file,
    }
    metrics = select_metrics(results["results"][task])
    return _make_record(results, task, task, model, metrics, details)


def _make_record(
    results: Mapping[str, Any],
    name: str,
    task: str,
    model: EvaluatedModel,
    metrics: Mapping[str, float],
    details: Mapping[str, Any],
) -> Evaluation:
    setting = _describe_setting(results, task)
    changes = [
        f"{setting['num_fewshot']}-shot" if setting["num_fewshot"] else None,
        "chat template" if setting["chat_template"] else None,
        f"limit {setting['limit']:g}" if setting["limit"] is not None else None,
    ]
    given = ", ".join(change for change in changes if change)
    return Evaluation(
        step=model.step,
        tokens=model.tokens,
        kind="lm_eval",
        # of one name the later record counts: another setting is another name
        name=f"{name} ({given})" if given else name,
        metrics=metrics,
        details={"task": name, "model": model.label, **details},
    )


def _describe_setting(results: Mapping[str, Any], task: str) -> dict[str, Any]:
    """How a task was evaluated."""
    config = results["config"]
    return {
        "num_fewshot": results["n-shot"].get(task, 0),
        "limit": config["limit"],
        "chat_template": bool(results.get("chat_template")),
        "system_instruction": results.get("system_instruction"),
        "gen_kwargs": config.get("gen_kwargs"),
        "max_length": results.get("max_length"),
        "dtype": str(config.get("model_dtype", "")).removeprefix("torch."),
        "lm_eval": results["lm_eval_version"],
    }
