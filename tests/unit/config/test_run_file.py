"""The line of each problem in a run file, and what is written reads back equal."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config import Config, load_run_file, parse, to_toml
from flame_accel.config.schema import Option, options, sections
from flame_accel.config.unsupported import UNSUPPORTED
from tests.helpers.run_files import parsed, problems, write

WRONG = {
    "run.toml": """# a comment
[training]
data_files = '''
seq_lem = 1
'''
seq_lem = 4

steps = "5"
varlen = 1
[[metrics]]
[optimizer]
lr = true
betas = [
  1,
]
name = "SGD"
[modle]
[job]
description = 5
""",
    "run.yaml": """# a comment
training:
  data_files: "
    seq_lem: 1
    "
  seq_lem: 4

  steps: "5"
  varlen: 1
metrics: [{}]
optimizer:
  lr: yes
  betas:
    - 1

  name: SGD
modle:
job:
  description: 5
""",
    "run.json": """{
"training": {
  "data_files": "\\"seq_lem\\": 1",


  "seq_lem": 4,

  "steps": "5",
  "varlen": 1 },
"metrics": [{}],
"optimizer": {
  "lr": true,
  "betas": [{"a": [{}]},
   1],

  "name": "SGD" },
"modle": {},
"job": {
  "description": 5 }
}
""",
}


@pytest.mark.parametrize("name", WRONG)
def test_every_problem_names_its_line(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, WRONG[name])
    found = [problem.partition("\n")[0] for problem in problems(path)]
    assert found == [
        f"{path}:6: training.seq_lem: there is no such option",
        f'{path}:8: training.steps = "5": must be a whole number',
        f"{path}:9: training.varlen = 1: must be true or false",
        f"{path}:10: metrics: is a section, not an option",
        f"{path}:12: optimizer.lr = true: must be a number",
        f"{path}:13: optimizer.betas: there is no such option",
        f'{path}:16: optimizer.name = "SGD": must be one of AdamW, Adam, Muon',
        f"{path}:17: modle: there is no such section",
        f"{path}:19: job.description = 5: must be text",
    ]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("run.toml", "[training]\nsteps = 500\n\nsteps = 500\nseed = 1\n", 4),
        ("run.toml", "training.steps = 500\n\n\ntraining.steps = 600", 4),
        ("run.yaml", "training:\n  steps: 500\n  seed: 1\n  steps: 500\n", 4),
        ("run.json", '{"training": {\n"steps": 500,\n"seed": 1,\n"steps": 500}}', 4),
    ],
)
def test_a_key_given_twice_names_both_lines(
    name: str, text: str, line: int, tmp_path: Path
) -> None:
    path = write(tmp_path / name, text)
    [problem] = problems(path)
    first = 2 if "\nsteps" in text or name != "run.toml" else 1
    assert f"{path}:{line}: training.steps: was already set in line {first}" in problem


def test_an_odd_key_is_refused_as_it_is_written(tmp_path: Path) -> None:
    [problem] = problems(write(tmp_path / "run.toml", '[job]\n"" = 1\n'))
    assert "run.toml:2: job.: there is no such option" in problem
    [problem] = problems(write(tmp_path / "run.toml", '[job]\n"a\\nb" = 1\n'))
    assert "run.toml:2: 'job.a\\nb': there is no such option" in problem


def test_a_section_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "job:\n  description: a\njob:\n  print_args: true\n")
    [problem] = problems(path)
    assert f"{path}:3: job: was already set in line 1" in problem


def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    for text in ("steps = 1e3", "steps = true", "max_norm = true", "max_norm = '1'", "varlen = 1"):
        [problem] = problems(write(tmp_path / "run.toml", f"[training]\n{text}\n"))
        assert "must be" in problem
    for text in ("steps = [1]", "steps = {a = 1}", f"steps = 0x{'f' * 9999}"):
        [problem] = problems(write(tmp_path / "run.toml", f"[training]\n{text}\n"))
        assert len(problem) < 200 + len(str(tmp_path))
    for text in ("add_bos: no", "steps: 1e3", "steps:", "max_norm: one", "dataset_name: 2024"):
        [problem] = problems(write(tmp_path / "run.yaml", f"training:\n  {text}\n"))
        assert "must be" in problem


def test_an_option_outside_of_its_section_is_found(tmp_path: Path) -> None:
    [problem] = problems(write(tmp_path / "run.yaml", "seq_len: 8\n"))
    assert "Did you mean training.seq_len?" in problem
    assert parsed(write(tmp_path / "run.yaml", "training.seq_len: 8\n")).training.seq_len == 8


@pytest.mark.parametrize("name", ["missing.toml", "run.ini", ".", "latin.yaml", "deep.json"])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"job:\n  description: caf\xe9\n")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "run.ini").write_text("")
    [problem] = problems(tmp_path / name)
    assert str(tmp_path) in problem


def test_two_names_of_one_option_in_a_file_must_agree(tmp_path: Path) -> None:
    text = "[training]\nwarmup_steps = 5\n[lr_scheduler]\nwarmup_steps = 6\n"
    [problem] = problems(write(tmp_path / "run.toml", text))
    assert "run.toml:2: training.warmup_steps = 5" in problem
    assert "run.toml:4: lr_scheduler.warmup_steps = 6" in problem


def test_what_a_file_asks_for_can_be_switched_off(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[experimental]\nenable_compiled_autograd = true\n")
    [problem] = problems(path)
    name = "experimental.enable_compiled_autograd"
    assert f"{path}:2: {name} = true: compiling the backward pass is not supported" in problem
    config = parsed(path, "--experimental.no_enable_compiled_autograd")
    assert config.experimental.enable_compiled_autograd is False


# paths of a resolved configuration: nothing in them is left to expand
EXPANDED = st.text(st.characters(exclude_characters="~$", codec="utf-8"))


def values(option: Option) -> st.SearchStrategy[Any]:
    """Values of an option that are accepted whatever the others are."""
    refused = UNSUPPORTED.get(option.name)
    # 8-bit floats do not go with tensor parallelism, and their options only with each other
    if (refused is not None and refused.refuses is None) or option.name.startswith("float8."):
        return st.just(option.default)
    special: dict[str, st.SearchStrategy[Any]] = {
        "model.config": st.sampled_from(["org/model", "org/gr\u00f6\u00dfe", 'a"b/c\\d']),
        "model.tokenizer_path": st.sampled_from([None, "byte", "org/tokenizer"]),
        "model.custom": st.lists(st.sampled_from(["package", "a, b", "c.d"])).map(tuple),
        "training.dataset": st.sampled_from(["python-stdlib", "org/data"]),
        "evaluation.dataset": st.sampled_from([None, "org/data"]),
        "training.warmup_steps": st.integers(0, 100),
        "training.steps": st.integers(1000, 10**9),
        "training.context_len": st.sampled_from([None, 2048]),
        "training.seq_len": st.just(2048),
        "training.packing": st.just("sequential"),
        "training.data_probs": st.sampled_from([None, (0.5,)]),
        "training.num_workers": st.integers(1, 99),
        "training.spike_window": st.integers(4, 999),
        "training.max_rewinds": st.just(0),
        "evaluation.interval": st.just(0),
        "evaluation.sets": st.sampled_from([(), ("a=org/b", 'c=d:e;data_files="f",g')]),
        "evaluation.metrics": st.sampled_from([(), ("loss", "accuracy")]),
        "evaluation.prompts": st.just(None),
        "evaluation.max_context": st.just(0),
        "evaluation.carry_state": st.just(False),
        "checkpoint.enable_checkpoint": st.just(True),
        "checkpoint.keep_best": st.just(None),
        "checkpoint.export_best": st.just(False),
        "checkpoint.folder": st.sampled_from(["checkpoint", "a b/c"]),
        "checkpoint.initial_load_path": st.sampled_from([None, "org/model"]),
        "checkpoint.initial_load_model_weights_only": st.just(True),
        "checkpoint.create_seed_checkpoint": st.just(False),
        "checkpoint.exclude_from_loading": st.just(()),
        "metrics.rank_0_only": st.just(True),
        "metrics.save_tb_folder": st.sampled_from(["tb", "x/y"]),
        "profiling.save_traces_folder": st.just("traces"),
        "profiling.save_memory_snapshot_folder": st.just("memory"),
        "job.dump_folder": EXPANDED.filter(bool),
        "hub.repo_id": st.just("org/model"),
        "hub.when": st.sampled_from(["end", "checkpoint", "3"]),
        "hub.revision": st.sampled_from(["main", "a/b"]),
        "hub.tag": st.just(None),
        "metrics.project": st.sampled_from(["flame_accel", 'A "name": #1']),
        "hub.model_name": st.sampled_from([None, 'A "name": #1']),
        "hub.license": st.sampled_from([None, "mit"]),
        "hub.language": st.sampled_from([(), ("en", "code")]),
        "hub.tags": st.sampled_from([(), ("a, b", "c")]),
        "hub.base_model": st.sampled_from([None, "org/model"]),
        "activation_checkpoint.selective_ac_option": st.sampled_from(["2", "op"]),
        "optimizer.early_step_in_backward": st.just(False),
    }
    if option.name in special:
        return special[option.name]
    plain: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(2, 2**31),
        float: st.floats(1e-300, 0.9),
        str: EXPANDED if option.path else st.text(),
    }
    single = st.sampled_from(option.choices) if option.choices else plain[option.kind]
    drawn = st.lists(single, max_size=3).map(tuple) if option.many else single
    if not option.optional:
        return drawn
    # of these texts a file cannot tell that they are not None
    return st.none() | drawn.filter(lambda value: str(value).lower() not in ("", "none"))


STRATEGIES = {name: values(option) for name, option in options().items()}


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    drawn: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    for name, strategy in STRATEGIES.items():
        section, _, key = name.partition(".")
        drawn[section][key] = draw(strategy)
    return Config(**{name: cls(**drawn[name]) for name, cls in sections().items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@settings(max_examples=60, deadline=None)
@given(config=configurations())
def test_a_written_configuration_reads_back_equal(folder: Path, config: Config) -> None:
    text = to_toml(config)
    path = folder / "config.toml"
    path.write_bytes(text.encode())
    again = load_run_file(path)
    # asdict also compares config_file, which does not take part in equality
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    assert to_toml(again) == text
    assert parse(["--job.config_file", str(path), "--job.dump_folder=exp"]) == dataclasses.replace(
        config, job=dataclasses.replace(config.job, dump_folder="exp")
    )


@settings(max_examples=15, deadline=None)
@given(config=configurations())
def test_every_format_can_hold_a_configuration(folder: Path, config: Config) -> None:
    content = dataclasses.asdict(config)
    (folder / "run.json").write_text(json.dumps(content, indent="\t"))
    assert load_run_file(folder / "run.json") == config
    listed = json.loads(json.dumps(content))
    (folder / "run.yaml").write_text(yaml.safe_dump(listed, allow_unicode=False))
    assert load_run_file(folder / "run.yaml") == config


def test_a_written_configuration_lists_every_option_under_its_section() -> None:
    lines = to_toml(Config()).splitlines()
    assert len([line for line in lines if " = " in line]) == len(options())
    assert [line[1:-1] for line in lines if line.startswith("[")] == list(sections())
    assert 'context_len = "none"' in lines
    assert "custom = []" in lines
