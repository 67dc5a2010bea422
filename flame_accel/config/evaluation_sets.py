"""Validation sets with names, `evaluation.sets`: as text, as tables of a run file, and checked.

    --evaluation.sets wiki=data/wiki.jsonl code=owner/code:test
    [evaluation.sets.wiki]
    dataset = "owner/wiki"
    dataset_split = "test"

The value of the option is a tuple of texts: tables become texts as `NAME=DATASET;KEY=VALUE;...`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from flame_accel.config.errors import BrokenRule
from flame_accel.config.file_formats import FileEntry
from flame_accel.config.paths import expand_comma_separated_paths, expand_path
from flame_accel.config.run_options import EvaluationConfig
from flame_accel.config.suggestions import nearest_text
from flame_accel.config.synthetic_tasks import is_synthetic
from flame_accel.config.values import InvalidValue

OPTION = "evaluation.sets"
MAIN_SET = "validation"
"""Name of the set of `evaluation.dataset`."""
SHIPPED_METRICS = ("loss", "perplexity", "bits_per_byte", "accuracy", "answer_accuracy")
"""Names of the metrics in the package; `evaluation.metric_modules` finds them by name."""
_FORM = "Write NAME=DATASET, NAME=DATASET:SPLIT, or a table of a run file for more."
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# a split of datasets, perhaps with slices and sums: validation, train[:10%], train+test
_SPLIT = re.compile(r"(?P<dataset>.+?):(?P<split>[\w.+-]+(\[[^\]/]*\][\w.+-]*)*)", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """A validation set with a name; the other fields are options of section evaluation."""

    name: str
    dataset: str
    dataset_name: str | None = None
    dataset_split: str | None = None
    data_dir: str | None = None
    data_files: str | None = None

    @property
    def is_probe(self) -> bool:
        """Whether it is made on the fly, of documents with questions and answers."""
        return is_synthetic(self.dataset)


_KEYS = tuple(field.name for field in fields(EvaluationSet) if field.name != "name")


def parse_evaluation_set(text: str) -> EvaluationSet:
    """The set that a text of the option stands for.

    Raises:
        InvalidValue: It is not of the form.
    """
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not rest:
        raise InvalidValue(f"has no {'dataset' if equals else 'name and dataset'}: {text}", _FORM)
    if not _NAME.fullmatch(name):
        rule = f"must have names of letters, digits, -, _ and ., not {name!r}"
        raise InvalidValue(rule, _FORM)
    if name == MAIN_SET:
        remedy = "Choose another name."
        raise InvalidValue(f"{MAIN_SET} is the name of the set of evaluation.dataset", remedy)
    dataset, *pairs = rest.split(";")
    values: dict[str, str] = {}
    # the colons of a task made on the fly are in front of its options
    if not is_synthetic(dataset) and (match := _SPLIT.fullmatch(dataset)):
        values = {"dataset": match["dataset"], "dataset_split": match["split"]}
    values.setdefault("dataset", dataset)
    for pair in pairs:
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in _KEYS or key == "dataset" or not value:
            raise _unknown_key_error(name, key)
        if key in values:
            raise InvalidValue(f"{name} has {key} twice", "Give each key once.")
        values[key] = value
    try:
        values["dataset"] = expand_path(values["dataset"])
        for key, expand in (
            ("data_dir", expand_path),
            ("data_files", expand_comma_separated_paths),
        ):
            if key in values:
                values[key] = expand(values[key])
    except ValueError as error:
        raise InvalidValue(str(error), "Set it, or write the path without it.") from None
    return EvaluationSet(name=name, **values)


def _unknown_key_error(name: str, key: str) -> InvalidValue:
    best = nearest_text(key, _KEYS)
    remedy = f"Did you mean {best}?" if best else f"The keys are {', '.join(_KEYS)}."
    return InvalidValue(f"{name} has no key {key}, or no value of it", remedy)


def evaluation_sets(evaluation: EvaluationConfig) -> list[EvaluationSet]:
    """All sets of a configuration, that of `evaluation.dataset` first.

    A text that is not of the form is left out: `find_broken_evaluation_set_rules` reports it.
    """
    sets: list[EvaluationSet] = []
    if evaluation.dataset is not None:
        own = {key: getattr(evaluation, key) for key in _KEYS}
        sets.append(EvaluationSet(name=MAIN_SET, **own))
    for text in evaluation.sets:
        with suppress(InvalidValue):
            sets.append(parse_evaluation_set(text))
    return sets


def find_broken_evaluation_set_rules(evaluation: EvaluationConfig) -> Iterator[BrokenRule]:
    """Sets that are not of the form, and names given twice."""
    names: set[str] = set()
    for text in evaluation.sets:
        try:
            name = parse_evaluation_set(text).name
        except InvalidValue as error:
            yield BrokenRule(options=(OPTION,), rule=error.rule, remedy=error.remedy)
            continue
        if name in names:
            rule, remedy = f"names two sets {name}", "Give each a name of its own."
            yield BrokenRule(options=(OPTION,), rule=rule, remedy=remedy)
        names.add(name)


def join_set_tables(entries: list[FileEntry]) -> list[FileEntry]:
    """The entries of a run file, with the tables of `evaluation.sets` as one value of that option.

    In TOML each set is a section of its own, whose header is an entry too, or a few dotted keys.
    """
    ours = [
        entry
        for entry in entries
        if f"{entry.section}.".startswith(f"{OPTION}.")
        or (entry.name == OPTION and isinstance(entry.value, Mapping))
    ]
    if not ours:
        return entries
    sets: dict[str, Any] = {}
    for entry in ours:
        if entry.name == OPTION:
            for name, table in (entry.value or {}).items():
                _add_table(sets, name, table)
        elif entry.key is not None:
            name = entry.section.removeprefix(OPTION).removeprefix(".")
            _add_table(sets, name or entry.key, {entry.key: entry.value} if name else entry.value)
    joined = FileEntry(section="evaluation", key="sets", value=sets, line=ours[0].line)
    return [*(entry for entry in entries if entry not in ours), joined]


def _add_table(sets: dict[str, Any], name: str, table: Any) -> None:
    """Adds keys of a set to those that are known of it."""
    both = isinstance(table, Mapping) and isinstance(sets.get(name), Mapping)
    sets[name] = {**sets[name], **table} if both else table


def set_tables_as_texts(value: object) -> object:
    """The value of `evaluation.sets` in a run file, with tables as texts; a list is unchanged.

    Raises:
        InvalidValue: A table has other keys or values than a dataset has.
    """
    if not isinstance(value, Mapping):
        return value
    return [_text_from_table(str(name), table) for name, table in value.items()]


def _text_from_table(name: str, table: object) -> str:
    if isinstance(table, str):
        return f"{name}={table}"
    if not isinstance(table, Mapping) or not isinstance(table.get("dataset"), str):
        rule = f"{name} must be a table with a dataset, or a text"
        raise InvalidValue(rule, 'Write dataset = "..." in it.')
    parts = [f"{name}={table['dataset']}"]
    for key, entry in table.items():
        if isinstance(entry, list) and key == "data_files":
            entry = ",".join(map(str, entry))
        if key not in _KEYS or not isinstance(entry, str):
            raise _unknown_key_error(name, str(key))
        if ";" in entry:
            raise InvalidValue(f"{name}.{key} must not have a semicolon", "Rename the file.")
        parts += [f"{key}={entry}"] * (key != "dataset")
    return ";".join(parts)
