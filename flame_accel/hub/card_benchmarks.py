"""What a model card says about tasks of lm-eval: a table, and entries of its `model-index`.

Only what the run recorded of this very model; a try on a part of the examples is none of it. The
validation of the run is in `card_data_tables` and `card_header`.
"""

import math

from huggingface_hub import EvalResult

from flame_accel.hub.markdown_table import format_four_digits_nan_or_inf
from flame_accel.hub.run_facts import BenchmarkRecord, ModelFacts

STDERR = "_stderr"
FEW_EXAMPLES = 100
"""With fewer of them a result says how many there were."""


def format_benchmarks_section(facts: ModelFacts) -> str:
    """The table of tasks and metrics; empty if no task was evaluated."""
    if not facts.benchmarks:
        return ""
    versions = sorted({str(record.details.get("lm_eval")) for record in facts.benchmarks})
    lines = [
        "## Benchmarks",
        "",
        "With [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) "
        f"{', '.join(versions)}:",
        "",
        "| task | examples in the prompt | metric | value | standard error |",
        "|---|---|---|---|---|",
    ]
    for record in sorted(facts.benchmarks, key=lambda record: record.name):
        for metric, value in _list_metrics(record).items():
            error = record.metrics.get(_stderr_name(metric))
            cells = [
                f"`{record.name}`{_describe_few_examples(record)}",
                str(record.details.get("num_fewshot", "")),
                metric,
                format_four_digits_nan_or_inf(value),
                format_four_digits_nan_or_inf(error),
            ]
            lines.append(f"| {' | '.join(cell or '' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def list_benchmark_results(facts: ModelFacts) -> list[EvalResult]:
    """An entry for each metric of each task that has a dataset; groups have none."""
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=record.details["dataset"],
            dataset_name=f"{record.name}{_describe_few_examples(record)}",
            dataset_config=record.details.get("config"),
            dataset_split=record.details.get("split"),
            dataset_args={"num_few_shot": record.details.get("num_fewshot", 0)},
            metric_type=metric.partition(",")[0],
            metric_name=metric,
            metric_value=value,
        )
        for record in sorted(facts.benchmarks, key=lambda record: record.name)
        if "dataset" in record.details
        for metric, value in _list_metrics(record).items()
        # JSON, which the Hub reads, has neither NaN nor infinities
        if math.isfinite(value)
    ]


def _describe_few_examples(record: BenchmarkRecord) -> str:
    """The number of examples where it is small, to stand behind the task's name; else empty."""
    examples = record.details.get("examples")
    if not isinstance(examples, int) or examples >= FEW_EXAMPLES:
        return ""
    return f" ({examples} example{'' if examples == 1 else 's'})"


def _list_metrics(record: BenchmarkRecord) -> dict[str, float]:
    """Metrics without their standard errors."""
    errors = {_stderr_name(metric) for metric in record.metrics}
    return {name: value for name, value in record.metrics.items() if name not in errors}


def _stderr_name(metric: str) -> str:
    """The name of a metric's standard error; the filter of the answers stays at the end."""
    name, comma, answer_filter = metric.partition(",")
    return f"{name}{STDERR}{comma}{answer_filter}"
