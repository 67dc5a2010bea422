"""Every option of the specification is there, parses, is explained, and has a test of its effect.

flame_options.txt is the specification, word for word; the mark `covers_option` names the tests.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from docs.generate_options import PAGE, read_tests
from flame_accel.config import ConfigError, parse
from flame_accel.config.flame_aliases import FLAME_OPTIONS
from flame_accel.config.help import format_help, help_texts
from flame_accel.config.schema import Option, options, sections
from flame_accel.config.settings import OptionSource, Setting, merge_sources
from tests.helpers.runs import ROOT

TESTS = read_tests()
REQUIRED = ["--model.config", "org/model", "--training.dataset", "python-stdlib"]
# of marks that keep a test out of the default suite
LEFT_OUT = {"slow", "gpu", "skip"}


class Specified(NamedTuple):
    """An option as the specification writes it."""

    name: str
    takes_value: bool
    choices: tuple[str, ...]


def read_specification() -> list[Specified]:
    text = (ROOT / "tests/laws/flame_options.txt").read_text(encoding="utf-8")
    found = re.findall(r"^  --(\w+\.\w+)(?: ([A-Z_.]+|\{[\w,]+\}))?(?=\s)", text, re.MULTILINE)
    return [
        Specified(name, bool(value), tuple(value.strip("{}").split(",")) if "{" in value else ())
        for name, value in found
    ]


SPECIFICATION = read_specification()
NAMES = [specified.name for specified in SPECIFICATION]


def test_the_specification_is_read_whole():
    text = (ROOT / "tests/laws/flame_options.txt").read_text(encoding="utf-8")
    assert len(NAMES) == len(set(NAMES)) == text.count("\n  --") == 53


@pytest.mark.parametrize("specified", SPECIFICATION, ids=NAMES)
def test_an_option_of_the_specification_parses(specified: Specified):
    option = options()[specified.name]
    assert (option.kind is not bool) == specified.takes_value
    assert specified.choices == () or specified.choices == option.choices
    for value in specified.choices or (sample(option),):
        words = [f"--{option.name}", *([value] if specified.takes_value else [])]
        assert refusals(words, about=option.name) == []


def sample(option: Option) -> str:
    """A value of the type."""
    if option.choices:
        return option.choices[-1]
    return {int: "2", float: "0.5", str: "text", bool: "true"}[option.kind]


def refusals(words: list[str], *, about: str) -> list[str]:
    """What is wrong with the option itself; what it needs besides is no matter here."""
    try:
        parse([*REQUIRED, *words])
    except ConfigError as error:
        rules = [str(problem) for problem in error.problems]
        wrong = ("no such option", "must be", "not available", "not supported", "belongs to no")
        return [rule for rule in rules if about in rule and any(word in rule for word in wrong)]
    return []


@pytest.fixture(scope="module")
def help_text() -> str:
    return format_help("all", width=100)


@pytest.mark.parametrize("name", options())
def test_an_option_is_in_the_help_and_on_the_page(name: str, help_text: str):
    page = PAGE.read_text(encoding="utf-8")
    assert f"--{name}" in help_text
    assert f"| `{name}` |" in page
    explained = help_texts()[name]
    assert len(explained.split()) >= 3


def test_every_option_is_covered_by_a_test():
    assert set(TESTS) == set(options())


@cache
def default_tests(path: Path) -> set[str]:
    """The test functions of a file that the default suite runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and LEFT_OUT & marks(statement.value):
            names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
            assert "pytestmark" not in names, f"the default suite leaves {path.name} out"
    return {
        function.name
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        and not any(LEFT_OUT & marks(decorator) for decorator in function.decorator_list)
    }


def marks(expression: ast.expr) -> set[str]:
    """Names of the marks of pytest that an expression consists of, but not of a parameter."""
    if isinstance(expression, ast.Call):
        return marks(expression.func)
    if isinstance(expression, (ast.List, ast.Tuple)):
        return set().union(*map(marks, expression.elts))
    return {expression.attr} if isinstance(expression, ast.Attribute) else set()


@pytest.mark.parametrize("name", TESTS)
def test_the_test_of_an_option_is_there_and_names_it(name: str):
    file, _, function = TESTS[name].partition("::")
    path = ROOT / "tests" / file
    assert function in default_tests(path) and function.startswith("test_")
    # apart from the mark itself
    text = re.sub(r"@pytest\.mark\.covers_option\([^)]*\)", "", path.read_text(encoding="utf-8"))
    section, _, key = name.partition(".")
    # by its name, or as a field of its section
    spellings = (section, sections()[section].__name__)
    in_section = any(re.search(rf"\b{word}\b", text) for word in spellings)
    assert name in text or (in_section and re.search(rf"\b{key}\b", text))


# DESIGN 2.2: names of flame's newer options that are understood
ALIASES = {
    "lr_scheduler": "warmup_steps decay_type decay_ratio lr_min",
    "training": "context_len varlen streaming data_dir data_files data_probs pin_memory "
    "persistent_workers",
    "optimizer": "eps beta1 beta2 weight_decay implementation",
    "checkpoint": "keep_latest_k load_step async_mode initial_load_path create_seed_checkpoint "
    "last_save_model_weights_only exclude_from_loading",
    "activation_checkpoint": "mode selective_ac_option",
    "float8": "enable_fsdp_float8_all_gather precompute_float8_dynamic_scale_for_fsdp "
    "force_recompute_fp8_weight_in_bwd recipe_name",
    "comm": "init_timeout_seconds train_timeout_seconds trace_buf_size",
    "experimental": "context_parallel_degree context_parallel_rotate_method "
    "pipeline_parallel_degree pipeline_parallel_split_points pipeline_parallel_schedule "
    "pipeline_parallel_schedule_csv pipeline_parallel_microbatches enable_async_tensor_parallel "
    "enable_compiled_autograd custom_model_path",
}
NEWER = [f"{section}.{key}" for section, keys in ALIASES.items() for key in keys.split()]


@pytest.mark.parametrize("name", NEWER)
def test_a_newer_name_of_flame_is_taken_or_refused_by_name(name: str):
    option = options().get(name) or FLAME_OPTIONS[name]
    try:
        parse([*REQUIRED, f"--{name}={sample(option)}"])
    except ConfigError as error:
        about = [problem for problem in error.problems if name in str(problem)]
        assert about and all(problem.remedy for problem in about)
        assert all("no such option" not in problem.rule for problem in error.problems)


@pytest.mark.parametrize("name", sorted(set(NEWER) - set(options())))
def test_a_name_that_is_not_ours_is_never_ignored(name: str):
    """It becomes a value of one of our options, or the run is refused."""
    option = FLAME_OPTIONS[name]
    value = {int: 2, float: 0.5, str: sample(option), bool: True}[option.kind]
    value = (value,) if option.many else value
    setting = Setting(name=name, value=value, where=f"--{name}", shown=str(value))
    merged = merge_sources([OptionSource(settings=[setting])])
    ours = set(merged.settings) & set(options())
    with_refusal = parse_problems(f"--{name}={sample(option)}")
    assert ours or any(name in problem for problem in with_refusal)


def parse_problems(*words: str) -> list[str]:
    try:
        parse([*REQUIRED, *words])
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []
