"""The help: a line for each common option, or everything about the options of a section.

    -h             the common options
    -h SECTION     all options of a section, such as `-h training`
    -h all         all options

Everything is drawn from the declarations; the docstring under a field is the option's description.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from flame_accel.config.derived_defaults import DERIVED_DEFAULTS
from flame_accel.config.errors import ConfigError, Problem
from flame_accel.config.schema import Option, options, sections
from flame_accel.config.suggestions import nearest_option_name
from flame_accel.config.unsupported import UNSUPPORTED
from flame_accel.config.values import format_short_masked_value

ALL = "all"
"""The topic that stands for every section."""
COMMON_OPTIONS = (
    "job.config_file",
    "job.dump_folder",
    "job.description",
    "job.dry_run",
    "model.config",
    "model.tokenizer_path",
    "model.custom",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.scheduler",
    "training.batch_size",
    "training.seq_len",
    "training.context_len",
    "training.varlen",
    "training.warmup_steps",
    "training.gradient_accumulation_steps",
    "training.steps",
    "training.dataset",
    "training.dataset_name",
    "training.streaming",
    "training.num_workers",
    "training.compile",
    "training.seed",
    "metrics.log_freq",
    "metrics.enable_tensorboard",
    "metrics.enable_wandb",
    "metrics.trackers",
    "checkpoint.interval",
    "checkpoint.keep_latest_k",
    "checkpoint.initial_load_path",
    "evaluation.dataset",
    "evaluation.interval",
    "hub.repo_id",
    "activation_checkpoint.mode",
)
"""The options of a typical run, in the order of the sections."""
_INTRODUCTION = (
    "Train a Flash Linear Attention model. Options come from the defaults, then from the run file "
    "(--job.config_file), then from flags; later ones win. Booleans take --a.b, --a.no_b and "
    "--a.b=true|false; none stands for no value. Names of flame's newer options "
    "(lr_scheduler.*, optimizer.implementation, ...) are accepted too."
)
_MIN_WIDTH, _MAX_WIDTH = 60, 120


@functools.cache
def help_texts() -> dict[str, str]:
    """The help of every option by name: the docstring under its field, on one line."""
    texts = {}
    for section, section_class in sections().items():
        [definition] = ast.parse(inspect.getsource(section_class)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                text = " ".join(str(below.value.value).split())
                texts[f"{section}.{statement.target.id}"] = text
    return texts


def format_default(option: Option) -> str:
    """The default as it would be written after a flag, or how it is derived."""
    if option.name in DERIVED_DEFAULTS:
        return DERIVED_DEFAULTS[option.name]
    if option.default in ("", ()):
        return "empty"
    if isinstance(option.default, str):
        return option.default
    return format_short_masked_value(option.default)


def _first_clause(text: str) -> str:
    ends = (text.find(mark) for mark in (". ", ": ", "; "))
    return text[: min((end for end in ends if end >= 0), default=None)].removesuffix(".")


def requested_help_topic_empty_for_common(argv: Sequence[str]) -> str | None:
    """The topic that a command line asks help for; empty for none in particular, None for no help.

    The topic follows `-h` or `--help`.
    """
    for position, argument in enumerate(argv):
        flag, _, topic = argument.partition("=")
        if flag in ("-h", "--help"):
            following = argv[position + 1 : position + 2]
            return topic or next((word for word in following if not word.startswith("-")), "")
    return None


def format_help(topic: str, *, width: int) -> str:
    """The text of the help on a topic.

    Args:
        topic: A section, an option, "all", or empty for the common options.
        width: Characters in a line, where possible; 60 and 120 are the limits.

    Raises:
        ConfigError: There is no such topic.
    """
    width = max(_MIN_WIDTH, min(width, _MAX_WIDTH))
    return "\n".join(
        _common_options_help_lines(width) if not topic else _topic_help_lines(topic, width)
    )


def _common_options_help_lines(width: int) -> Iterator[str]:
    """An introduction, and the common options with a line each."""
    yield "usage: flame-accel train [--section.option value ...], or bash train.sh in a checkout"
    yield ""
    yield textwrap.fill(_INTRODUCTION, width)
    common = [options()[name] for name in COMMON_OPTIONS]
    indent = max(len(option.name) for option in common) + 6
    for section, members in _group_by_section(common):
        yield ""
        yield section
        for option in members:
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            summary = _first_clause(help_texts()[option.name])
            default = "" if summary.endswith("(required)") else f" [{format_default(option)}]"
            yield textwrap.fill(
                f"{summary}{choices}{default}",
                width,
                initial_indent=f"  --{option.name}".ljust(indent),
                subsequent_indent=" " * indent,
            )
    yield ""
    number = len(options())
    yield f"These are {len(common)} of {number} options; [ ] holds the default. For the others:"
    yield ""
    yield "  bash train.sh -h SECTION   all options of a section, with their full description"
    yield f"  bash train.sh -h {ALL}       all options of all sections"
    yield ""
    yield textwrap.fill(
        f"Sections: {', '.join(sections())}", width, subsequent_indent=" " * len("Sections: ")
    )


def _topic_help_lines(topic: str, width: int) -> Iterator[str]:
    """Everything about the options of a section, one option, or all options."""
    name = topic.removeprefix("--")
    chosen = [
        option
        for option in options().values()
        if name in (ALL, option.name, option.name.partition(".")[0])
    ]
    if not chosen:
        best = nearest_option_name(name, [ALL, *sections(), *options()])
        choices = f"The sections are {', '.join(sections())}; {ALL} stands for all of them."
        remedy = f"Did you mean {best}? {choices}" if best else choices
        rule = "there is no such section or option"
        shown = format_short_masked_value(topic)
        raise ConfigError([Problem(where="-h", value=shown, rule=rule, remedy=remedy)])
    for section, members in _group_by_section(chosen):
        summary = " ".join((sections()[section].__doc__ or "").split())
        yield textwrap.fill(f"{section}: {summary}", width)
        for option in members:
            values = (
                "{" + ",".join(option.choices) + "}" if option.choices else option.python_type_name
            )
            refused = UNSUPPORTED.get(option.name)
            yield ""
            yield f"  --{option.name} {values} (default: {format_default(option)})"
            yield textwrap.fill(
                help_texts()[option.name] + (f" Refused: {refused.reason}." if refused else ""),
                width,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )
        yield ""


def _group_by_section(chosen: Iterable[Option]) -> Iterator[tuple[str, Iterator[Option]]]:
    return groupby(chosen, key=lambda option: option.name.partition(".")[0])
