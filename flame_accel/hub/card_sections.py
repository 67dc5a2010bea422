"""The sections of a model card in words: Markdown from the facts of a run.

No sentence says what the facts do not; where they are None, it is left out. The metadata at the top
is made in `card_header`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flame_accel.data.sources.dataset_descriptions import DatasetDescription
from flame_accel.hub.citations import FLA, architecture, find_paper, format_bibtex
from flame_accel.hub.run_facts import Cost, ModelFacts
from flame_accel.models.catalogue import fla_config_classes

LOSS_CURVE_FILE = "loss_curve.png"
PRIVATE_CHANGES = ("job.", "metrics.", "profiling.", "comm.", "hub.")
"""Sections whose options do not change the model."""
PATH_OPTIONS = (
    "model.config",
    "model.tokenizer_path",
    "model.custom",
    "training.dataset",
    "training.data_dir",
    "training.data_files",
    "evaluation.dataset",
    "evaluation.data_dir",
    "evaluation.data_files",
    "checkpoint.folder",
    "checkpoint.initial_load_path",
)
"""Options that may hold paths of the machine on which the run was started."""
EVALUATION_NAMES = {
    "eval/loss": "loss (nats per token)",
    "eval/perplexity": "perplexity",
    "eval/bits_per_byte": "bits per byte of text",
    "eval/accuracy": "accuracy of the next token",
}


def write_sections(facts: ModelFacts, *, name: str, has_loss_curve: bool) -> dict[str, str]:
    """The sections of a card by name, in their order; empty ones are left out.

    Args:
        facts: About the model and its run.
        name: Of the model.
        has_loss_curve: Whether there is a picture of it.
    """
    sections = {
        "title": _title(facts, name),
        "usage": _usage(facts),
        "data": _data(facts),
        "evaluation": _evaluation(facts, has_loss_curve=has_loss_curve),
        "training": _training(facts),
        "environment": _environment(facts),
        "limits": _limits(facts),
        "citation": _citation(facts),
    }
    return {name: text.strip() + "\n" for name, text in sections.items() if text.strip()}


def is_fla_model(model_type: str) -> bool:
    """Whether fla registers the architecture, with its own norm or another."""
    return architecture(model_type) in fla_config_classes()


def _title(facts: ModelFacts, name: str) -> str:
    size = "" if facts.num_weights is None else f" with {facts.num_weights:,} parameters"
    lines = [f"# {name}", "", f"A `{facts.model_type}` language model{size}."]
    if facts.starts:
        version = facts.starts[-1]["packages"].get("flame_accel")
        lines[-1] += f" Trained with flame_accel {version}."
    if description := facts.option("job.description"):
        lines += ["", description]
    return "\n".join(lines)


def _usage(facts: ModelFacts) -> str:
    where = facts.option("hub.repo_id")
    place = "its name on the Hub, or a folder with its files" if where else "this folder"
    path = f'path = "{where or "."}"  # {place}'
    text = [
        'inputs = tokenizer("Once upon a time", return_tensors="pt")',
        "tokens = model.generate(**inputs, max_new_tokens=64, do_sample=True)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
    ]
    remote = "auto_map" in facts.model_config
    ours = architecture(facts.model_type) != facts.model_type
    lines = ["## How to load it", ""]
    if is_fla_model(facts.model_type):
        lines += [
            "With [flash-linear-attention](https://github.com/fla-org/flash-linear-attention), "
            "which has the architecture:",
            "",
            "```python",
            "import flame_accel" if ours else "import fla  # without a GPU: import flame_accel",
        ]
    else:
        lines += ["```python"]
    lines += [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        path,
        "model = AutoModelForCausalLM.from_pretrained(path)",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        *text,
        "```",
    ]
    if remote:
        lines += [
            "",
            "Without these imports, with the code that comes with the model:",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            path,
            "model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)",
            "tokenizer = AutoTokenizer.from_pretrained(path)",
            *text,
            "```",
        ]
    if remote or not is_fla_model(facts.model_type):
        lines += [
            "",
            "As a pipeline:",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            path,
            f'generate = pipeline("text-generation", path{", trust_remote_code=True" * remote})',
            'print(generate("Once upon a time", max_new_tokens=64)[0]["generated_text"])',
            "```",
        ]
    return "\n".join(lines)


def _data(facts: ModelFacts) -> str:
    rows: list[tuple[str, str | None]] = []
    datasets = facts.training_data
    for dataset in datasets:
        share = f", {dataset['share']:.1%} of the tokens" if len(datasets) > 1 else ""
        rows.append(("data", describe_dataset(dataset) + share))
    epoch = facts.last_record.get("epoch")
    rows += [
        ("tokens", None if facts.tokens is None else f"{facts.tokens:,}"),
        ("passes over the data", None if epoch is None else f"{epoch:.3g}"),
        ("tokenizer", _tokenizer(facts)),
        ("tokens per row", _number(facts.option("training.seq_len"))),
        ("rows", _rows(facts)),
        ("documents left out", _left_out(facts)),
    ]
    return _titled_table("## Data", rows)


def _left_out(facts: ModelFacts) -> str | None:
    """How many documents were read and not trained on, and why."""
    skipped = facts.last_record.get("data/skipped_documents")
    if not skipped:
        return None
    total = f"{int(skipped):,} of the {int(facts.last_record['data/documents']):,} that were read"
    held_out = any(dataset["held_out_share"] is not None for dataset in facts.training_data)
    return f"{total} ({'held out for validation, ' * held_out}damaged or without text)"


def describe_dataset(dataset: DatasetDescription) -> str:
    """A dataset in a cell of a table."""
    name = dataset["name"]
    if dataset["on_hub"]:
        text = f"[{name}](https://huggingface.co/datasets/{name})"
    else:
        text = f"`{name}`"
    for key in ("config", "split"):
        if dataset[key] is not None:
            text += f", {key} `{dataset[key]}`"
    if dataset["documents"] is not None:
        text += f", {dataset['documents']:,} documents"
    if dataset["conversations"]:
        text += " (conversations; the loss counts what the assistant says)"
    return text


def _tokenizer(facts: ModelFacts) -> str | None:
    """Its name where it has one that means the same everywhere."""
    name = facts.option("model.tokenizer_path")
    return "UTF-8 bytes" if name == "byte" else None


def _rows(facts: ModelFacts) -> str | None:
    if not facts.options:
        return None
    if not facts.option("training.varlen"):
        return "documents one after the other; state and attention cross their borders"
    length = facts.option("training.context_len") or facts.option("training.seq_len")
    packing = ", placed where they fit best" if facts.option("training.packing") == "best_fit" else ""
    return f"documents kept apart, at most {length:,} tokens each{packing}"


def _evaluation(facts: ModelFacts, *, has_loss_curve: bool) -> str:
    evaluation, dataset = facts.last_evaluation, facts.evaluation_data
    if evaluation is None and not has_loss_curve:
        return ""
    lines = ["## Loss and evaluation", ""]
    if has_loss_curve:
        lines += [f"![Loss over the steps of training]({LOSS_CURVE_FILE})", ""]
    loss = facts.last_record.get("train/loss")
    rows = [("training loss, last reported (nats per token)", _figure(loss))]
    if evaluation is not None:
        rows += [
            (f"validation: {EVALUATION_NAMES[key]}", _figure(value))
            for key, value in evaluation.values.items()
        ]
        if dataset is not None:
            rows.append(("validation data", describe_evaluation_dataset(dataset)))
        rows.append(("validated after step", f"{evaluation.step:,}"))
    return "\n".join(lines) + _table(rows)


def describe_evaluation_dataset(dataset: DatasetDescription) -> str:
    """The validation data; of documents that are held out, the total does not count."""
    share = dataset["held_out_share"]
    if share is None:
        return describe_dataset(dataset)
    held_out = f"{share:.1%} of its documents, chosen by a hash of their text, not trained on"
    return f"{describe_dataset({**dataset, 'documents': None})}, {held_out}"


def _training(facts: ModelFacts) -> str:
    option = facts.option
    if not facts.options:
        rows = [("updates", None if facts.step is None else f"{facts.step:,}")]
        return _titled_table("## Training", rows)
    skipped = facts.last_record.get("optimizer/skipped_steps")
    weights = facts.starting_weights
    source = None
    if weights is not None:
        source = f"[{weights['name']}](https://huggingface.co/{weights['name'].partition('@')[0]})"
        source = source if weights["on_hub"] else f"weights of a local folder, `{weights['name']}`"
    elif facts.starts and facts.starts[0]["step"] == 0:
        source = f"random weights, seed {option('training.seed')}"
    schedule = f"{option('optimizer.scheduler')}, warm-up of {option('training.warmup_steps'):,} steps"
    if option("optimizer.scheduler") == "wsd":
        share, shape = option("optimizer.decay_ratio"), option("optimizer.decay_type")
        schedule += f", {shape} decay during the last {share:.0%}"
    schedule += f", down to {option('optimizer.min_lr_ratio'):g} of the peak"
    optimizer = (
        f"{option('optimizer.name')}, betas {option('optimizer.beta1'):g} and "
        f"{option('optimizer.beta2'):g}, weight decay {option('optimizer.weight_decay'):g}"
    )
    clipping = option("training.max_norm")
    updates = f"{facts.step:,} of {option('training.steps'):,}"
    rows = [
        ("started from", source),
        ("updates", updates if facts.step != option("training.steps") else f"{facts.step:,}"),
        ("tokens per update", _number(facts.tokens_per_step)),
        ("optimizer", optimizer),
        ("peak learning rate", f"{option('optimizer.lr'):g}"),
        ("learning rate schedule", schedule),
        ("gradients clipped at norm", f"{clipping:g}" if clipping else None),
        ("updates skipped", f"{int(skipped):,}, whose gradients were not finite" if skipped else None),
        ("seed", str(option("training.seed"))),
        ("layers", _number(facts.model_config.get("num_hidden_layers"))),
        ("width", _number(facts.model_config.get("hidden_size"))),
        ("vocabulary", _number(facts.model_config.get("vocab_size"))),
    ]
    text = _titled_table("## Training", rows)
    changes = [change for start in facts.starts for change in _changed_options(start)]
    if changes:
        text += "\nThe options changed on the way; the table has those of the last steps:\n\n"
        text += "\n".join(f"* {change}" for change in changes) + "\n"
    return text


def _changed_options(start: Mapping[str, Any]) -> list[str]:
    """What was different from a start on, without paths and what does not matter to the model."""
    return [
        f"from step {start['step'] + 1:,}: `{change['option']}` {change['before']} → {change['after']}"
        for change in start["changed_options"]
        if not change["option"].startswith(PRIVATE_CHANGES)
        and change["option"] not in PATH_OPTIONS
    ]


def _environment(facts: ModelFacts) -> str:
    if not facts.starts:
        return ""
    rows: list[tuple[str, str | None]] = []
    described = ""
    for start in facts.starts:
        hardware = _hardware(start)
        if hardware != described:
            first = f"from step {start['step'] + 1:,}: " if described else ""
            rows.append(("devices", first + hardware))
        described = hardware
    rows += [("starts", f"{len(facts.starts)}" if len(facts.starts) > 1 else None)]
    if (cost := facts.cost) is not None:
        rows += _cost_rows(cost)
    versions = facts.starts[-1]["packages"]
    named = [f"{name} {version}" for name, version in versions.items() if version]
    git = facts.starts[-1]["git"]
    commit = f" (commit {git['commit'][:12]}{', changed' * git['dirty']})" if git else ""
    rows.append(("versions", ", ".join([named[0] + commit, *named[1:]])))
    text = _titled_table("## Hardware, time and versions", rows)
    if any(start["packages"] != versions for start in facts.starts):
        text += "\nEarlier starts of the run had other versions; the table has those of the last.\n"
    return text


def _hardware(start: Mapping[str, Any]) -> str:
    engine = start["engine"]
    how = "" if engine in ("NO", "no") else f", {engine}"
    device = start["device"] or "CPU"
    precision = {"no": "fp32"}.get(start["mixed_precision"], start["mixed_precision"])
    return f"{start['processes']} × {device}{how}, {precision}"


def _cost_rows(cost: Cost) -> list[tuple[str, str | None]]:
    return [
        ("time, without validation and checkpoints", format_duration(cost.seconds)),
        (
            "device hours",
            None if cost.device_seconds is None else f"{cost.device_seconds / 3600:,.4g}",
        ),
        ("tokens per second", f"{cost.tokens_per_second:,.0f}"),
        ("model FLOPs utilization", None if cost.mfu is None else f"{cost.mfu:.1%}"),
        (
            "peak memory of a device",
            None if cost.peak_memory_gib is None else f"{cost.peak_memory_gib:.3g} GiB",
        ),
    ]


def format_duration(seconds: float) -> str:
    """A duration in the two largest units that it has."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _limits(facts: ModelFacts) -> str:
    limits: list[str] = []
    if facts.training_data and not any(d["conversations"] for d in facts.training_data):
        limits.append("It continues text. It was not trained on conversations or instructions here.")
    if (length := facts.option("training.seq_len")) is not None:
        longest = length
        if facts.option("training.varlen"):
            longest = facts.option("training.context_len") or length
        limits.append(f"It was trained on at most {longest:,} tokens in a row; beyond, nothing is known.")
    evaluation = facts.last_evaluation
    if facts.records and evaluation is None:
        limits.append("It was not validated during training.")
    elif evaluation is not None and evaluation.step != facts.step:
        limits.append(
            f"The last validation was after step {evaluation.step:,}, not after its last step."
        )
    if facts.starts and facts.starts[0]["step"] > 0:
        step = facts.starts[0]["step"]
        limits.append(f"The first {step:,} steps were another run's, of which nothing is recorded here.")
    if facts.records:
        limits.append(
            "Nothing is recorded about truthfulness, bias or safety: evaluate it before you use it."
        )
    if not limits:
        return ""
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _citation(facts: ModelFacts) -> str:
    entries = []
    paper = find_paper(facts.model_type)
    if paper is not None:
        entries.append(format_bibtex(architecture(facts.model_type), paper))
    if is_fla_model(facts.model_type):
        entries.append(FLA)
    if not entries:
        return ""
    what = "The architecture, and the library that has it" if len(entries) > 1 else "The architecture"
    if paper is None:
        what = "The library that has the architecture"
    return f"## Citation\n\n{what}:\n\n```bibtex\n" + "\n\n".join(entries) + "\n```"


def _titled_table(title: str, rows: Sequence[tuple[str, str | None]]) -> str:
    table = _table(rows)
    return f"{title}\n{table}" if table else ""


def _table(rows: Sequence[tuple[str, str | None]]) -> str:
    """Two columns; rows without a value are left out."""
    known = [(name, value.replace("|", "\\|")) for name, value in rows if value is not None]
    if not known:
        return ""
    lines = ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in known)]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _figure(value: float | None) -> str | None:
    """Four digits; what is not finite is said as it is."""
    if value is None:
        return None
    return f"{value:,.4g}" if math.isfinite(value) else str(value)
