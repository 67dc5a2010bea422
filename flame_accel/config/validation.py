"""Values that are wrong, alone or together (`relations`), whatever source they come from.

Rules only, on a whole `Config`; nothing is read from disk (`paths` does) and nothing is adjusted.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from flame_accel.config.availability import refusal
from flame_accel.config.dialect import FOREIGN
from flame_accel.config.relations import RELATIONS
from flame_accel.config.root import Config
from flame_accel.config.schema import options, value_of
from flame_accel.config.values import show


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A broken rule."""

    options: tuple[str, ...]
    """The options concerned, the one to blame first."""
    rule: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    holds: Callable[[Any], bool]
    text: str


def _at_least(low: int) -> _Rule:
    return _Rule(holds=lambda value: value >= low, text=f"must be at least {low}")


_POSITIVE = _Rule(holds=lambda value: value > 0, text="must be above 0")
_FRACTION = _Rule(holds=lambda value: 0 <= value <= 1, text="must be from 0 to 1")
_BETA = _Rule(holds=lambda value: 0 <= value < 1, text="must be at least 0 and below 1")
_INSIDE = _Rule(
    holds=lambda value: (
        PurePath(value).parts not in ((), ("hf",))
        and ".." not in PurePath(value).parts
        and not PurePath(value).is_absolute()
    ),
    text="must be a folder inside the run folder, other than hf, which holds the exported model",
)

_PARTS = ("optimizer", "lr_scheduler", "dataloader", "train_state")
"""What can be left out of a checkpoint, by flame's names."""

_RULES = {
    "job.dump_folder": _Rule(holds=bool, text="must not be empty"),
    "profiling.save_traces_folder": _INSIDE,
    "profiling.profile_freq": _at_least(1),
    "profiling.save_memory_snapshot_folder": _INSIDE,
    "optimizer.lr": _POSITIVE,
    "optimizer.eps": _POSITIVE,
    "optimizer.beta1": _BETA,
    "optimizer.beta2": _BETA,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.decay_ratio": _FRACTION,
    "optimizer.min_lr_ratio": _FRACTION,
    "training.batch_size": _at_least(1),
    "training.seq_len": _at_least(2),
    "training.context_len": _at_least(2),
    "training.warmup_steps": _at_least(0),
    "training.gradient_accumulation_steps": _at_least(1),
    "training.steps": _at_least(1),
    "training.max_norm": _at_least(0),
    "training.max_consecutive_skips": _at_least(0),
    "training.num_workers": _at_least(0),
    "training.prefetch_factor": _at_least(1),
    "training.max_bad_records": _at_least(0),
    "training.max_document_bytes": _at_least(1),
    "training.shuffle_block": _at_least(1),
    "training.data_probs": _Rule(
        holds=lambda value: all(share > 0 and math.isfinite(share) for share in value),
        text="must be numbers above 0",
    ),
    "training.data_parallel_replicate_degree": _at_least(1),
    "training.data_parallel_shard_degree": _Rule(
        holds=lambda value: value == -1 or value >= 1,
        text="must be at least 1, or -1 for the devices that are left over",
    ),
    "training.tensor_parallel_degree": _at_least(1),
    "training.gc_freq": _at_least(0),
    "training.seed": _Rule(
        holds=lambda value: 0 <= value < 2**32, text="must be from 0 to 4294967295"
    ),
    "metrics.log_freq": _at_least(1),
    "metrics.save_tb_folder": _INSIDE,
    "checkpoint.folder": _INSIDE,
    "checkpoint.interval": _at_least(1),
    "checkpoint.keep_latest_k": _at_least(0),
    "checkpoint.load_step": _at_least(-1),
    "checkpoint.exclude_from_loading": _Rule(
        holds=lambda parts: set(parts) <= set(_PARTS), text=f"must be of {', '.join(_PARTS)}"
    ),
    "evaluation.interval": _at_least(0),
    "evaluation.batch_size": _at_least(1),
    "evaluation.held_out_share": _Rule(
        holds=lambda value: 0 < value < 1, text="must be between 0 and 1"
    ),
    "evaluation.max_tokens": _at_least(0),
    "evaluation.sample_tokens": _at_least(0),
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


def find_problems(
    config: Config, given: Collection[str], foreign: dict[str, Any]
) -> Iterator[Finding]:
    """Every broken rule.

    Args:
        config: All values of our own options.
        given: Names of the options that the user set.
        foreign: Values of options that only flame has.
    """
    broken: set[str] = set()
    for name, option in options().items():
        value = value_of(config, name)
        rule = _broken_rule(name, value)
        if rule is not None:
            broken.add(name)
            remedy = f"Give such a value; the default is {show(option.default)}."
            yield Finding(options=(name,), rule=rule, remedy=remedy)
        elif (refused := refusal(option, value)) is not None:
            yield Finding(options=(name,), rule=refused.reason, remedy=refused.remedy)
    for name, value in foreign.items():
        if (refused := refusal(FOREIGN[name], value)) is not None:
            yield Finding(options=(name,), rule=refused.reason, remedy=refused.remedy)
    yield from _missing(config)
    # values that are wrong alone are in no relation to others
    for names, check in RELATIONS:
        if broken.isdisjoint(names) and (found := check(config, given)) is not None:
            yield Finding(options=names, rule=found[0], remedy=found[1])
    yield from _folders(config, broken)


def _broken_rule(name: str, value: Any) -> str | None:
    rule = _RULES.get(name)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    return None if rule is None or value is None or rule.holds(value) else rule.text


_QUICKSTART = "or start from --job.config_file quickstart"


def _missing(config: Config) -> Iterator[Finding]:
    if config.model.config is None:
        remedy = f"Name a JSON file, a folder or a model on the Hub, {_QUICKSTART}."
        yield Finding(options=("model.config",), rule="is required", remedy=remedy)
    if config.training.dataset is None:
        remedy = f"Name a file, a folder, a dataset or python-stdlib, {_QUICKSTART}."
        yield Finding(options=("training.dataset",), rule="is required", remedy=remedy)


def _folders(config: Config, broken: Collection[str]) -> Iterator[Finding]:
    first: dict[PurePath, str] = {}
    for name in _RULES:
        if _RULES[name] is not _INSIDE or name in broken:
            continue
        other = first.setdefault(PurePath(value_of(config, name)), name)
        if other != name:
            rule, remedy = f"is the same folder as {other}", "Give each its own folder."
            yield Finding(options=(name, other), rule=rule, remedy=remedy)
