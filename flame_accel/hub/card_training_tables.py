"""The tables of a model card about its training: options, hardware, time and versions.

Rows whose facts were not recorded are left out. Data and losses are in `card_data_tables`; the
other sections are written in `card_sections`.
"""

from flame_accel.config.schema import options
from flame_accel.hub.markdown_table import NameAndValue, format_integer, format_titled_table
from flame_accel.hub.run_facts import Cost, ModelFacts
from flame_accel.observe.starts import RunStart

PRIVATE_CHANGES = ("job.", "metrics.", "profiling.", "comm.", "hub.")
"""Sections whose options do not change the model."""
ENGINES = {"NO": "", "MULTI_GPU": "DDP", "MULTI_CPU": "DDP"}
"""What Accelerate calls by another name than everyone else."""


def format_training_section_and_option_changes(facts: ModelFacts) -> str:
    """Start, optimizer, schedule and shape."""
    option = facts.option
    if not facts.options:
        rows = [("updates", None if facts.step is None else f"{facts.step:,}")]
        return format_titled_table("## Training", rows)
    skipped = facts.last_values.get("optimizer/skipped_steps")
    weights = facts.starting_weights
    source = None
    if weights is not None:
        source = f"[{weights['name']}](https://huggingface.co/{weights['name'].partition('@')[0]})"
        source = source if weights["on_hub"] else f"weights of a local folder, `{weights['name']}`"
    elif facts.starts and facts.starts[0]["step"] == 0:
        source = _fill_with_options(facts, "random weights, seed {seed}", seed="training.seed")
    schedule = _fill_with_options(
        facts,
        "{scheduler}, warm-up of {warmup:,} steps",
        scheduler="optimizer.scheduler",
        warmup="training.warmup_steps",
    )
    decay = _fill_with_options(
        facts,
        ", {shape} decay during the last {share:.0%}",
        shape="optimizer.decay_type",
        share="optimizer.decay_ratio",
    )
    end = _fill_with_options(
        facts, ", down to {ratio:g} of the peak", ratio="optimizer.min_lr_ratio"
    )
    if schedule is not None:
        only_wsd = decay if option("optimizer.scheduler") == "wsd" else None
        schedule += (only_wsd or "") + (end or "")
    optimizer = _fill_with_options(
        facts,
        "{name}, betas {beta1:g} and {beta2:g}, weight decay {decay:g}",
        name="optimizer.name",
        beta1="optimizer.beta1",
        beta2="optimizer.beta2",
        decay="optimizer.weight_decay",
    )
    clipping = option("training.max_norm")
    total = option("training.steps")
    of_total = "" if total in (None, facts.step) else f" of {total:,}"
    rows = [
        ("started from", source),
        ("updates", None if facts.step is None else f"{facts.step:,}{of_total}"),
        ("tokens per update", format_integer(facts.tokens_per_step)),
        ("optimizer", optimizer),
        ("peak learning rate", _fill_with_options(facts, "{lr:g}", lr="optimizer.lr")),
        ("learning rate schedule", schedule),
        ("gradients clipped at norm", f"{clipping:g}" if clipping else None),
        (
            "updates skipped",
            f"{int(skipped):,}, which were spikes or not finite" if skipped else None,
        ),
        ("seed", _fill_with_options(facts, "{seed}", seed="training.seed")),
        ("layers", format_integer(facts.model_config.get("num_hidden_layers"))),
        ("width", format_integer(facts.model_config.get("hidden_size"))),
        ("layers with softmax attention", _list_softmax_layers(facts)),
        ("vocabulary", format_integer(facts.model_config.get("vocab_size"))),
        ("stored weights", facts.model_config.get("dtype")),
    ]
    text = format_titled_table("## Training", rows)
    changes = [
        change for start in facts.starts for change in _format_recorded_public_option_changes(start)
    ]
    if changes:
        text += "\nThe options changed on the way; the table has those of the last steps:\n\n"
        text += "\n".join(f"* {change}" for change in changes) + "\n"
    return text


def _fill_with_options(facts: ModelFacts, template: str, **option_names: str) -> str | None:
    """A template with the values of options; None if one of them was not recorded."""
    values = {field: facts.option(name) for field, name in option_names.items()}
    return None if None in values.values() else template.format(**values)


def _list_softmax_layers(facts: ModelFacts) -> str | None:
    """The layers of a hybrid of fla that are not those of its architecture, from 0 on."""
    attention = facts.model_config.get("attn")
    layers = attention.get("layers") if isinstance(attention, dict) else None
    return ", ".join(map(str, layers)) if layers else None


def _format_recorded_public_option_changes(start: RunStart) -> list[str]:
    """What was different from a start on, without paths and what does not matter to the model."""
    first = f"from step {start['step'] + 1:,}"
    return [
        f"{first}: `{change['option']}` {change['before']} → {change['after']}"
        for change in start["changed_options"]
        if _is_known_public_option_without_path(change["option"])
    ]


def _is_known_public_option_without_path(option_name: str) -> bool:
    """Whether an option says something about the model, and holds no path of a machine."""
    declared = options().get(option_name)
    return (
        declared is not None
        and declared.path is None
        and not option_name.startswith(PRIVATE_CHANGES)
    )


def format_hardware_time_and_versions_section(facts: ModelFacts) -> str:
    """Devices, time and versions."""
    if not facts.starts:
        return ""
    rows: list[NameAndValue] = []
    described = ""
    for start in facts.starts:
        hardware = _describe_devices_engine_and_precision(start)
        if hardware != described:
            first = f"from step {start['step'] + 1:,}: " if described else ""
            rows.append(("devices", first + hardware))
        described = hardware
    rows += [("starts", f"{len(facts.starts)}" if len(facts.starts) > 1 else None)]
    if (cost := facts.cost) is not None:
        rows += _format_time_speed_and_memory_rows(cost)
    versions = facts.starts[-1]["packages"]
    named = [f"{name} {version}" for name, version in versions.items() if version]
    git = facts.starts[-1]["git"]
    commit = f" (commit {git['commit'][:12]}{' with changes' * git['dirty']})" if git else ""
    rows.append(("versions", ", ".join([named[0] + commit, *named[1:]])))
    text = format_titled_table("## Hardware, time and versions", rows)
    if any(start["packages"] != versions for start in facts.starts):
        text += "\nEarlier starts of the run had other versions; the table has those of the last.\n"
    return text


def _describe_devices_engine_and_precision(start: RunStart) -> str:
    engine = ENGINES.get(start["engine"], start["engine"])
    how = f", {engine}" if engine else ""
    device = start["device"] or "CPU"
    kind = start["mixed_precision"]
    precision = "fp32" if kind == "no" else f"{kind} mixed precision"
    return f"{start['processes']} x {device}{how}, {precision}"


def _format_time_speed_and_memory_rows(cost: Cost) -> list[NameAndValue]:
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
