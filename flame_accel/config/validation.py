"""Values that are wrong, alone or together, whatever source they come from.

Rules only, on a whole `Config`; nothing is read from disk (`paths` does) and nothing is adjusted.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from flame_accel.config.availability import refusal
from flame_accel.config.dialect import FOREIGN
from flame_accel.config.root import Config
from flame_accel.config.schema import options
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
    "evaluation.interval": _at_least(0),
    "evaluation.batch_size": _at_least(1),
    "evaluation.max_tokens": _at_least(0),
    "evaluation.sample_tokens": _at_least(0),
    "activation_checkpoint.selective_ac_option": _Rule(
        holds=lambda value: value == "op" or (value.isdecimal() and int(value) >= 1),
        text="must be op or a whole number of at least 1",
    ),
    "comm.init_timeout_seconds": _at_least(1),
    "comm.train_timeout_seconds": _at_least(1),
    "comm.trace_buf_size": _at_least(0),
    "experimental.context_parallel_degree": _at_least(1),
    "experimental.pipeline_parallel_degree": _at_least(1),
}


def value_of(config: Config, name: str) -> Any:
    """The value of an option by name."""
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def find_problems(
    config: Config, given: Collection[str], foreign: dict[str, Any]
) -> Iterator[Finding]:
    """Every broken rule.

    Args:
        config: All values of our own options.
        given: Names of the options that the user set.
        foreign: Values of options that only flame has.
    """
    for name, option in options().items():
        value = value_of(config, name)
        broken = _broken_rule(name, value)
        refused = refusal(option, value)
        if broken is not None:
            remedy = f"Give such a value; the default is {show(option.default)}."
            yield Finding(options=(name,), rule=broken, remedy=remedy)
        elif refused is not None:
            yield Finding(options=(name,), rule=refused.reason, remedy=refused.remedy)
    for name, value in foreign.items():
        refused = refusal(FOREIGN[name], value)
        if refused is not None:
            yield Finding(options=(name,), rule=refused.reason, remedy=refused.remedy)
    yield from _missing(config)
    yield from _lengths(config)
    yield from _schedule(config)
    yield from _pointless(config, given)
    yield from _folders(config)


def _broken_rule(name: str, value: Any) -> str | None:
    rule = _RULES.get(name)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    return None if rule is None or value is None or rule.holds(value) else rule.text


_QUICKSTART = "or start from --job.config_file configs/recipes/quickstart.toml"


def _missing(config: Config) -> Iterator[Finding]:
    if config.model.config is None:
        remedy = f"Name a JSON file, a folder or a model on the Hub, {_QUICKSTART}."
        yield Finding(options=("model.config",), rule="is required", remedy=remedy)
    if config.training.dataset is None:
        remedy = f"Name a file, a folder, a dataset or python-stdlib, {_QUICKSTART}."
        yield Finding(options=("training.dataset",), rule="is required", remedy=remedy)


def _lengths(config: Config) -> Iterator[Finding]:
    context_len, seq_len = config.training.context_len, config.training.seq_len
    if context_len is None or context_len == seq_len:
        return
    if context_len > seq_len:
        yield Finding(
            options=("training.context_len", "training.seq_len"),
            rule=f"must be at most training.seq_len: {context_len} > {seq_len}",
            remedy="Lower training.context_len or raise training.seq_len.",
        )
    elif not config.training.varlen:
        yield Finding(
            options=("training.context_len", "training.varlen"),
            rule="has no effect on rows in which documents follow each other",
            remedy="Add --training.varlen, or remove training.context_len.",
        )


def _schedule(config: Config) -> Iterator[Finding]:
    steps, warmup = config.training.steps, config.training.warmup_steps
    wsd = config.optimizer.scheduler == "wsd"
    decay = round(config.optimizer.decay_ratio * steps) if wsd else 0
    if warmup + decay <= steps:
        return
    decaying = f" and the decay ({decay})" if wsd else ""
    yield Finding(
        options=("training.warmup_steps", "training.steps", "optimizer.decay_ratio")
        if wsd
        else ("training.warmup_steps", "training.steps"),
        rule=f"training.warmup_steps ({warmup}){decaying} must fit into training.steps ({steps})",
        remedy=f"Give --training.warmup_steps {max(steps - decay, 0)} or fewer, or more steps.",
    )


def _pointless(config: Config, given: Collection[str]) -> Iterator[Finding]:
    """Options that ask for something that another option turned off."""
    if config.training.persistent_workers and config.training.num_workers == 0:
        yield Finding(
            options=("training.persistent_workers", "training.num_workers"),
            rule="there are no workers to keep alive (training.num_workers is 0)",
            remedy="Raise training.num_workers, or remove training.persistent_workers.",
        )
    if config.checkpoint.load_step >= 0 and not config.checkpoint.enable_checkpoint:
        yield Finding(
            options=("checkpoint.load_step", "checkpoint.enable_checkpoint"),
            rule="checkpoints are off (checkpoint.enable_checkpoint is false)",
            remedy="Add --checkpoint.enable_checkpoint, or remove checkpoint.load_step.",
        )
    # none that was asked for turns validation off, whatever a run file says of its interval
    if config.evaluation.interval > 0 and (
        config.evaluation.dataset is None and "evaluation.dataset" not in given
    ):
        yield Finding(
            options=("evaluation.interval", "evaluation.dataset"),
            rule="there is nothing to validate on (evaluation.dataset is none)",
            remedy="Name the validation data with evaluation.dataset.",
        )


def _folders(config: Config) -> Iterator[Finding]:
    names = [name for name, rule in _RULES.items() if rule is _INSIDE]
    first: dict[PurePath, str] = {}
    for name in names:
        other = first.setdefault(PurePath(value_of(config, name)), name)
        if other != name:
            yield Finding(
                options=(name, other),
                rule=f"is the same folder as {other}",
                remedy="Give each its own folder.",
            )
