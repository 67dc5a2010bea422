"""The metadata of a model card, which the Hub searches and checks: YAML entries by name.

The texts below it are written in `card_sections`.
"""

import math
import re

from huggingface_hub import EvalResult, ModelCardData

from flame_accel.hub.card_benchmarks import list_benchmark_results
from flame_accel.hub.card_sections import is_fla_model
from flame_accel.hub.citations import model_type_without_norm
from flame_accel.hub.run_facts import ModelFacts

METRICS = {
    "eval/loss": ("loss", "Loss (nats per token)"),
    "eval/perplexity": ("perplexity", "Perplexity"),
    "eval/bits_per_byte": ("bits_per_byte", "Bits per byte"),
    "eval/accuracy": ("accuracy", "Accuracy of the next token"),
}
"""By key in the records: type and name of the metric on the Hub."""
UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def choose_model_name(facts: ModelFacts) -> str:
    """The name that the options give, the repository's, or architecture and size, as gla-340M."""
    given = facts.option("hub.model_name")
    if given is not None:
        return given
    repository = facts.option("hub.repo_id")
    if repository is not None:
        return repository.rpartition("/")[2]
    if facts.num_weights is None:
        return facts.model_type
    return f"{facts.model_type}-{format_parameter_count(facts.num_weights)}"


def format_parameter_count(count: int) -> str:
    """A count of parameters as it is usually named: 340M, 1.3B."""
    for unit, letter in UNITS:
        # what would be rounded to 1000 of a unit is 1 of the next
        if count >= 0.9995 * unit:
            return (
                f"{float(f'{count / unit:.2g}' if count < 10 * unit else count // unit):g}{letter}"
            )
    return str(count)


def format_header_entries(facts: ModelFacts, *, name: str) -> dict[str, str]:
    """The entries of the metadata by name, each with a line break at its end.

    Args:
        facts: About the model and its run.
        name: Of the model.
    """
    own = ["flash-linear-attention"] if is_fla_model(facts.model_type) else []
    tags = [
        *own,
        model_type_without_norm(facts.model_type),
        "flame_accel",
        *(facts.option("hub.tags") or ()),
    ]
    datasets = [dataset["name"] for dataset in facts.training_data if dataset["on_hub"]]
    card = ModelCardData(
        license=facts.option("hub.license"),
        language=list(facts.option("hub.language") or ()) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=facts.given_or_starting_base_model,
        datasets=list(dict.fromkeys(datasets)) or None,
        tags=list(dict.fromkeys(tags)),
        model_name=name,
        eval_results=[*list_results_at_model_step(facts), *list_benchmark_results(facts)] or None,
    )
    lines = card.to_yaml().splitlines()
    entries = re.split(r"^(?=[\w-]+:)", "\n".join(lines) + "\n", flags=re.MULTILINE)[1:]
    return {entry.partition(":")[0]: entry for entry in entries}


def list_results_at_model_step(facts: ModelFacts) -> list[EvalResult]:
    """The last validation, if it is of this very model."""
    evaluation, dataset = facts.last_evaluation, facts.evaluation_data
    if evaluation is None or dataset is None or evaluation.step != facts.step:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=dataset["name"],
            dataset_name=dataset["name"],
            dataset_config=dataset["config"],
            dataset_split=dataset["split"],
            dataset_args=None
            if dataset["held_out_share"] is None
            else {"held_out_share": dataset["held_out_share"]},
            metric_type=METRICS[key][0],
            metric_name=METRICS[key][1],
            metric_value=value,
        )
        for key, value in evaluation.values.items()
        # JSON, which the Hub reads, has neither NaN nor infinities
        if math.isfinite(value)
    ]
