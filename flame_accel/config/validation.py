"""Every rule that the values of a configuration break.

Ranges of single values, required options and folders are checked here; options that contradict
each other in `consistency`, paths on this machine in `input_checks`. Nothing is read from disk.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from flame_accel.config.best_checkpoint import find_best_checkpoint_contradictions
from flame_accel.config.consistency import find_contradictions
from flame_accel.config.errors import BrokenRule
from flame_accel.config.evaluation_sets import SHIPPED_METRICS, find_broken_evaluation_set_rules
from flame_accel.config.flame_aliases import FLAME_ONLY
from flame_accel.config.hub_consistency import find_hub_contradictions
from flame_accel.config.hub_options import LICENSES, STEP
from flame_accel.config.paths import looks_like_path
from flame_accel.config.schema import Config, option_value, options
from flame_accel.config.synthetic_consistency import find_synthetic_task_problems
from flame_accel.config.unsupported import find_unsupported
from flame_accel.config.values import format_short_masked_value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    holds: Callable[[Any], bool]
    text: str


def _at_least(low: int) -> _Rule:
    return _Rule(holds=lambda value: value >= low, text=f"must be at least {low}")


_POSITIVE = _Rule(holds=lambda value: value > 0, text="must be above 0")
_FRACTION = _Rule(holds=lambda value: 0 <= value <= 1, text="must be from 0 to 1")
_BETA = _Rule(holds=lambda value: 0 <= value < 1, text="must be at least 0 and below 1")
_INSIDE_RUN_FOLDER = _Rule(
    holds=lambda value: (
        PurePath(value).parts not in ((), ("hf",))
        and ".." not in PurePath(value).parts
        and not PurePath(value).is_absolute()
    ),
    text="must be a folder inside the run folder, other than hf, which holds the exported model",
)

_LICENSE = _Rule(
    holds=lambda value: value in LICENSES,
    text="must be a license of the Hub, such as apache-2.0, mit, cc-by-4.0 or other "
    "(https://huggingface.co/docs/hub/repositories-licenses)",
)
_LANGUAGES = _Rule(
    holds=lambda codes: all(
        re.fullmatch("[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual", code) for code in codes
    ),
    text="must be codes of two or three small letters (ISO 639), code or multilingual",
)
_MODEL_ON_HUB = _Rule(
    holds=lambda value: re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", value, re.ASCII) is not None,
    text="must be a model on the Hub, as NAMESPACE/NAME",
)
_REPO_NAME = r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?"
_REPO_ID = _Rule(
    holds=lambda value: (
        re.fullmatch(rf"({_REPO_NAME}/)?{_REPO_NAME}(?<!\.git)", value, re.ASCII) is not None
    ),
    text="must be NAMESPACE/NAME on the Hub: letters, digits and -, _, . between them (neither -- "
    "nor .., and no .git at the end)",
)
# git's rules for names of branches, and none that is a commit or one of the Hub's own references
_GIT_REFERENCE = _Rule(
    holds=lambda value: (
        re.fullmatch(
            r"(?!refs/|[0-9a-f]{40}$)(?!.*(\.\.|//))\w[\w.+/=-]*(?<![./-])",
            value.replace(STEP, "0"),
            re.ASCII,
        )
        is not None
    ),
    text="must be a name of a branch or tag: letters, digits and -, _, ., / between them",
)
_ONE_LINE = _Rule(
    holds=lambda value: value.isprintable() and bool(value.strip()), text="must be one line of text"
)

_CHECKPOINT_PARTS = ("optimizer", "lr_scheduler", "dataloader", "train_state")
"""Parts of a checkpoint that need not be loaded, by flame's names."""

_RULES = {
    "job.dump_folder": _Rule(holds=bool, text="must not be empty"),
    "job.gpu_hour_price": _at_least(0),
    "profiling.save_traces_folder": _INSIDE_RUN_FOLDER,
    "profiling.profile_freq": _at_least(1),
    "profiling.save_memory_snapshot_folder": _INSIDE_RUN_FOLDER,
    "optimizer.lr": _POSITIVE,
    "optimizer.eps": _POSITIVE,
    "optimizer.beta1": _BETA,
    "optimizer.beta2": _BETA,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.decay_ratio": _FRACTION,
    "optimizer.min_lr_ratio": _FRACTION,
    "training.batch_size": _at_least(1),
    "training.seq_len": _at_least(2),
    "training.vocab_multiple": _at_least(1),
    "training.context_len": _at_least(2),
    "training.warmup_steps": _at_least(0),
    "training.gradient_accumulation_steps": _at_least(1),
    "training.steps": _at_least(1),
    "training.max_norm": _at_least(0),
    "training.max_consecutive_skips": _at_least(0),
    "training.max_rewinds": _at_least(0),
    "training.skip_spike_sigma": _at_least(0),
    "training.spike_window": _at_least(4),
    "training.watchdog_seconds": _at_least(0),
    "training.num_workers": _at_least(0),
    "training.prefetch_factor": _at_least(1),
    "training.max_bad_records": _at_least(0),
    "training.max_document_bytes": _at_least(1),
    "training.shuffle_block": _at_least(1),
    "training.data_probs": _Rule(
        holds=lambda value: all(share > 0 for share in value),
        text="must be numbers above 0",
    ),
    "training.data_parallel_replicate_degree": _at_least(1),
    "training.data_parallel_shard_degree": _Rule(
        holds=lambda value: value == -1 or value >= 1,
        text="must be at least 1, or -1 for all remaining devices",
    ),
    "training.tensor_parallel_degree": _at_least(1),
    "training.gc_freq": _at_least(0),
    "training.seed": _Rule(
        holds=lambda value: 0 <= value < 2**32, text="must be from 0 to 4294967295"
    ),
    "metrics.log_freq": _at_least(1),
    "metrics.save_tb_folder": _INSIDE_RUN_FOLDER,
    "metrics.project": _ONE_LINE,
    "metrics.wait_seconds": _at_least(0),
    "checkpoint.folder": _INSIDE_RUN_FOLDER,
    "checkpoint.interval": _at_least(1),
    "checkpoint.keep_latest_k": _at_least(0),
    "checkpoint.max_failures": _at_least(1),
    "checkpoint.load_step": _at_least(-1),
    "checkpoint.exclude_from_loading": _Rule(
        holds=lambda parts: set(parts) <= set(_CHECKPOINT_PARTS),
        text=f"must be of {', '.join(_CHECKPOINT_PARTS)}",
    ),
    "evaluation.interval": _at_least(0),
    "evaluation.batch_size": _at_least(1),
    "evaluation.held_out_share": _Rule(
        holds=lambda value: 0 < value < 1, text="must be between 0 and 1"
    ),
    "evaluation.max_tokens": _at_least(0),
    "evaluation.metrics": _Rule(
        holds=lambda names: all(name in SHIPPED_METRICS or looks_like_path(name) for name in names),
        text=f"must be of {', '.join(SHIPPED_METRICS)}, or paths such as ./my_metric",
    ),
    "evaluation.max_context": _at_least(0),
    "evaluation.sample_temperature": _at_least(0),
    "evaluation.sample_tokens": _at_least(0),
    "hub.repo_id": _REPO_ID,
    "hub.when": _Rule(
        holds=lambda value: re.fullmatch("end|checkpoint|[1-9][0-9]*", value) is not None,
        text="must be end, checkpoint or a whole number of at least 1",
    ),
    "hub.revision": _GIT_REFERENCE,
    "hub.tag": _GIT_REFERENCE,
    "hub.wait_seconds": _at_least(0),
    "hub.model_name": _ONE_LINE,
    "hub.license": _LICENSE,
    "hub.language": _LANGUAGES,
    "hub.tags": _Rule(
        holds=lambda tags: all(_ONE_LINE.holds(tag) for tag in tags), text=_ONE_LINE.text
    ),
    "hub.base_model": _MODEL_ON_HUB,
    "activation_checkpoint.selective_ac_option": _Rule(
        holds=lambda value: re.fullmatch("op|[1-9][0-9]*", value) is not None,
        text="must be op or a whole number of at least 1",
    ),
    "comm.init_timeout_seconds": _at_least(1),
    "comm.train_timeout_seconds": _at_least(1),
    "comm.trace_buf_size": _at_least(0),
    "experimental.context_parallel_degree": _at_least(1),
    "experimental.pipeline_parallel_degree": _at_least(1),
}


def find_broken_rules(
    config: Config, given_options: Collection[str], flame_only_values: dict[str, Any]
) -> Iterator[BrokenRule]:
    """Every rule that the values break.

    Args:
        config: The values of all our options.
        given_options: Names of the options that the user set.
        flame_only_values: Values of the options that only flame has.
    """
    out_of_range: set[str] = set()
    for name, option in options().items():
        value = option_value(config, name)
        broken = find_broken_range_or_format_rule(name, value)
        if broken is not None:
            out_of_range.add(name)
            yield broken
        elif (entry := find_unsupported(option, value)) is not None:
            yield BrokenRule(options=(name,), rule=entry.reason, remedy=entry.remedy)
    for name, value in flame_only_values.items():
        if (entry := find_unsupported(FLAME_ONLY[name], value)) is not None:
            yield BrokenRule(options=(name,), rule=entry.reason, remedy=entry.remedy)
    yield from _find_missing_required_options(config)
    yield from find_broken_evaluation_set_rules(config.evaluation)
    # a value that is out of range is not compared with others
    contradictions = find_contradictions(config, given_options)
    contradictions = (
        *contradictions,
        *find_hub_contradictions(config, given_options),
        *find_best_checkpoint_contradictions(config),
        *find_synthetic_task_problems(config),
    )
    for broken in contradictions:
        if out_of_range.isdisjoint(broken.options):
            yield broken
    yield from _find_run_subfolders_named_twice(config, out_of_range)


def find_broken_range_or_format_rule(name: str, value: Any) -> BrokenRule | None:
    """The rule that the value of an option breaks whatever the others are; None if none."""
    rule = _RULES.get(name)
    if rule is None or value is None or rule.holds(value):
        return None
    default = format_short_masked_value(options()[name].default)
    remedy = f"Choose such a value; the default is {default}."
    return BrokenRule(options=(name,), rule=rule.text, remedy=remedy)


_QUICKSTART = "or start from --job.config_file quickstart"


def _find_missing_required_options(config: Config) -> Iterator[BrokenRule]:
    if config.model.config is None:
        remedy = f"Name a JSON file, a folder or a model on the Hub, {_QUICKSTART}."
        yield BrokenRule(options=("model.config",), rule="is required", remedy=remedy)
    if config.training.dataset is None:
        remedy = f"Name a file, a folder, a dataset or python-stdlib, {_QUICKSTART}."
        yield BrokenRule(options=("training.dataset",), rule="is required", remedy=remedy)


def _find_run_subfolders_named_twice(
    config: Config, out_of_range: Collection[str]
) -> Iterator[BrokenRule]:
    """Options for folders inside the run folder that name the same folder."""
    first: dict[PurePath, str] = {}
    for name in _RULES:
        if _RULES[name] is not _INSIDE_RUN_FOLDER or name in out_of_range:
            continue
        other = first.setdefault(PurePath(option_value(config, name)), name)
        if other != name:
            rule, remedy = f"is the same folder as {other}", "Use a different folder for each."
            yield BrokenRule(options=(name, other), rule=rule, remedy=remedy)
