"""The tables of a model card about its data: what it was trained on, and its losses.

Rows whose facts were not recorded are left out. How it was trained is in `card_training_tables`;
the other sections are written in `card_sections`.
"""

from flame_accel.data.sources.dataset_descriptions import DatasetDescription
from flame_accel.hub.markdown_table import (
    NameAndValue,
    format_four_digits_nan_or_inf,
    format_integer,
    format_table_of_known_values,
    format_titled_table,
)
from flame_accel.hub.run_facts import ModelFacts

LOSS_CURVE_FILE = "loss_curve.png"
EVALUATION_NAMES = {
    "eval/loss": "loss (nats per token)",
    "eval/perplexity": "perplexity",
    "eval/bits_per_byte": "bits per byte of text",
    "eval/accuracy": "accuracy of the next token",
}


def format_data_section(facts: ModelFacts) -> str:
    """What the model was trained on."""
    rows: list[NameAndValue] = []
    datasets = facts.training_data
    for dataset in datasets:
        share = f", {dataset['share']:.1%} of the tokens" if len(datasets) > 1 else ""
        rows.append(("data", describe_dataset(dataset) + share))
    rows += [
        ("tokens", None if facts.tokens is None else f"{facts.tokens:,}"),
        ("passes over the data", _describe_passes(facts)),
        ("tokenizer", _name_byte_tokenizer(facts)),
        ("tokens per row", format_integer(facts.option("training.seq_len"))),
        ("rows", _describe_rows(facts)),
        ("documents left out", _describe_skipped_documents(facts)),
    ]
    return format_titled_table("## Data", rows)


def _describe_passes(facts: ModelFacts) -> str | None:
    """How often the data was read: in documents or files, whose tokens are not as many each."""
    epoch = facts.last_values.get("epoch")
    if epoch is None:
        return None
    unit = "files" if facts.option("training.streaming") else "documents"
    of_dataset = ", of the dataset that was read most often" * (len(facts.training_data) > 1)
    return f"{epoch:.3g}, counted in {unit}{of_dataset}"


def _describe_skipped_documents(facts: ModelFacts) -> str | None:
    """How many documents were read and not trained on, and why."""
    skipped = facts.last_values.get("data/skipped_documents")
    if not skipped:
        return None
    total = f"{int(skipped):,} of the {int(facts.last_values['data/documents']):,} that were read"
    held_out = any(dataset["held_out_share"] is not None for dataset in facts.training_data)
    return f"{total} ({'held out for validation, ' * held_out}damaged or without text)"


def describe_dataset(dataset: DatasetDescription) -> str:
    """A dataset in a cell of a table."""
    name = dataset["name"]
    link = f"[{name}](https://huggingface.co/datasets/{name})"
    text = link if dataset["on_hub"] else f"`{name}`"
    for key in ("config", "split"):
        if dataset[key] is not None:
            text += f", {key} `{dataset[key]}`"
    if dataset["documents"] is not None:
        text += f", {dataset['documents']:,} documents"
    if dataset["conversations"]:
        text += " (conversations; the loss counts what the assistant says)"
    return text


def _name_byte_tokenizer(facts: ModelFacts) -> str | None:
    """Its name where it has one that means the same everywhere."""
    name = facts.option("model.tokenizer_path")
    return "UTF-8 bytes" if name == "byte" else None


def _describe_rows(facts: ModelFacts) -> str | None:
    varlen = facts.option("training.varlen")
    if varlen is None:
        return None
    length = facts.option("training.context_len") or facts.option("training.seq_len")
    if not varlen or length is None:
        return "documents one after the other; state and attention cross their borders"
    packing = (
        ", placed where they fit best" if facts.option("training.packing") == "best_fit" else ""
    )
    return f"documents kept apart, at most {length:,} tokens each{packing}"


def format_loss_and_evaluation_section(facts: ModelFacts, *, has_loss_curve: bool) -> str:
    """The loss curve, and the last validation."""
    evaluation, dataset = facts.last_evaluation, facts.evaluation_data
    if evaluation is None and not has_loss_curve:
        return ""
    lines = ["## Loss and evaluation", ""]
    if has_loss_curve:
        lines += [f"![Loss over the steps of training]({LOSS_CURVE_FILE})", ""]
    loss = facts.last_values.get("train/loss")
    rows = [("training loss, last reported (nats per token)", format_four_digits_nan_or_inf(loss))]
    if evaluation is not None:
        rows += [
            (f"validation: {EVALUATION_NAMES[key]}", format_four_digits_nan_or_inf(value))
            for key, value in evaluation.values.items()
        ]
        if dataset is not None:
            rows.append(("validation data", describe_evaluation_dataset(dataset)))
        rows.append(("validated after step", f"{evaluation.step:,}"))
    return "\n".join(lines) + format_table_of_known_values(rows)


def describe_evaluation_dataset(dataset: DatasetDescription) -> str:
    """The validation data; of documents that are held out, the total does not count."""
    share = dataset["held_out_share"]
    if share is None:
        return describe_dataset(dataset)
    held_out = f"{share:.1%} of its documents, chosen by a hash of their text, not trained on"
    return f"{describe_dataset({**dataset, 'documents': None})}, {held_out}"
