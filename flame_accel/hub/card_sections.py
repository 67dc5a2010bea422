"""The sections of a model card in words: Markdown from the facts of a run.

No sentence says what the facts do not; where they are None, it is left out. The metadata at the top
is made in `card_header`, the sections that are tables in `card_data_tables` and
`card_training_tables`.
"""

from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
)

from flame_accel.hub.card_benchmarks import format_benchmarks_section
from flame_accel.hub.card_data_tables import format_data_section, format_loss_and_evaluation_section
from flame_accel.hub.card_training_tables import (
    format_hardware_time_and_versions_section,
    format_training_section_and_option_changes,
)
from flame_accel.hub.citations import FLA, find_paper, format_bibtex, model_type_without_norm
from flame_accel.hub.run_facts import ModelFacts
from flame_accel.models.catalogue import fla_config_classes


def format_sections(facts: ModelFacts, *, name: str, has_loss_curve: bool) -> dict[str, str]:
    """The sections of a card by name, in their order; empty ones are left out.

    Args:
        facts: About the model and its run.
        name: Of the model.
        has_loss_curve: Whether there is a picture of it.
    """
    sections = {
        "title": _format_title_section(facts, name),
        "usage": _format_usage_section(facts),
        "data": format_data_section(facts),
        "evaluation": format_loss_and_evaluation_section(facts, has_loss_curve=has_loss_curve),
        "benchmarks": format_benchmarks_section(facts),
        "training": format_training_section_and_option_changes(facts),
        "environment": format_hardware_time_and_versions_section(facts),
        "limits": _format_limits_section(facts),
        "citation": _format_citation_section(facts),
    }
    return {name: text.strip() + "\n" for name, text in sections.items() if text.strip()}


def is_fla_model(model_type: str) -> bool:
    """Whether fla registers the architecture, with its own norm or another."""
    return model_type_without_norm(model_type) in fla_config_classes()


def _format_title_section(facts: ModelFacts, name: str) -> str:
    size = "" if facts.num_weights is None else f" with {facts.num_weights:,} parameters"
    lines = [f"# {name}", "", f"A `{facts.model_type}` language model{size}."]
    if facts.starts:
        version = facts.starts[-1]["packages"].get("flame_accel")
        lines[-1] += f" Trained with flame_accel {version}."
    if description := facts.option("job.description"):
        lines += ["", description]
    return "\n".join(lines)


def _format_usage_section(facts: ModelFacts) -> str:
    where = facts.option("hub.repo_id")
    place = "its name on the Hub, or a folder with its files" if where else "this folder"
    path = f'path = "{where or "."}"  # {place}'
    carries_code = "auto_map" in facts.model_config
    lines = ["## How to load it"]
    if model_type_without_norm(facts.model_type) != facts.model_type:
        lines += [
            "",
            "With flame_accel, which registers the architecture with this kind of norm:",
            *_format_loading_example(path, "import flame_accel"),
        ]
    elif is_fla_model(facts.model_type):
        lines += [
            "",
            "With [flash-linear-attention](https://github.com/fla-org/flash-linear-attention), "
            "which has the architecture:",
            *_format_loading_example(path, "import fla  # without a GPU: import flame_accel"),
        ]
    elif facts.model_type in CONFIG_MAPPING_NAMES:
        lines += [
            "",
            "With transformers, which has the architecture:",
            *_format_loading_example(path),
        ]
    elif not carries_code:
        lines += [
            "",
            "The architecture is not one of a library: first import the module that registers it "
            "with transformers.",
            *_format_loading_example(path),
        ]
    if carries_code:
        lines += [
            "",
            "With the code that comes with the model:",
            *_format_loading_example(path, trusts_code=True),
        ]
    if carries_code or facts.model_type in CONFIG_MAPPING_NAMES.keys() - fla_config_classes():
        trust = ", trust_remote_code=True" if carries_code else ""
        lines += [
            "",
            "As a pipeline:",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            path,
            f'generate = pipeline("text-generation", path{trust})',
            'print(generate("Once upon a time", max_new_tokens=64)[0]["generated_text"])',
            "```",
        ]
    return "\n".join(lines)


def _format_loading_example(path_line: str, *imports: str, trusts_code: bool = False) -> list[str]:
    """Lines of code that load the model and generate text.

    Args:
        path_line: The line that says where the model is.
        imports: What registers the architecture.
        trusts_code: Whether the code that comes with the model is run.
    """
    trust = ", trust_remote_code=True" if trusts_code else ""
    return [
        "",
        "```python",
        *imports,
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        path_line,
        f"model = AutoModelForCausalLM.from_pretrained(path{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained(path{trust})",
        'inputs = tokenizer("Once upon a time", return_tensors="pt")',
        "tokens = model.generate(**inputs, max_new_tokens=64, do_sample=True)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
        "```",
    ]


def _format_limits_section(facts: ModelFacts) -> str:
    limits: list[str] = []
    if facts.training_data and not any(d["conversations"] for d in facts.training_data):
        limits.append(
            "It continues text. It was not trained on conversations or instructions here."
        )
    if (length := facts.option("training.seq_len")) is not None:
        longest = length
        if facts.option("training.varlen"):
            longest = facts.option("training.context_len") or length
        limits.append(
            f"It was trained on at most {longest:,} tokens in a row; beyond, nothing is known."
        )
    evaluation = facts.last_evaluation
    if facts.records and evaluation is None:
        limits.append("It was not validated during training.")
    elif evaluation is not None and evaluation.step != facts.step:
        limits.append(
            f"The last validation was after step {evaluation.step:,}, not after its last step."
        )
    if facts.starts and facts.starts[0]["step"] > 0:
        step = facts.starts[0]["step"]
        limits.append(
            f"The first {step:,} steps were another run's, of which nothing is recorded here."
        )
    if facts.records:
        limits.append(
            "Nothing is recorded about truthfulness, bias or safety: evaluate it before you use it."
        )
    if not limits:
        return ""
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _format_citation_section(facts: ModelFacts) -> str:
    entries = []
    paper = find_paper(facts.model_type)
    if paper is not None:
        entries.append(format_bibtex(model_type_without_norm(facts.model_type), paper))
    if is_fla_model(facts.model_type):
        entries.append(FLA)
    if not entries:
        return ""
    what = (
        "The architecture, and the library that has it" if len(entries) > 1 else "The architecture"
    )
    if paper is None:
        what = "The library that has the architecture"
    return f"## Citation\n\n{what}:\n\n```bibtex\n" + "\n\n".join(entries) + "\n```"
