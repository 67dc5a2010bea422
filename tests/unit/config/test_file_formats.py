"""TOML, YAML and JSON say the same, and syntax errors name their line."""

from pathlib import Path

import pytest

from tests.helpers.run_files import parsed, problems, write

SAME = {
    "run.toml": """
model.custom = ["a", "b"]
training = { seq_len = 64, text_column = "none", data_dir = "" }
[optimizer]
lr = 1e-4
eps = 1
[evaluation]
prompt = '''
[training]
steps = 1'''
""",
    "run.yaml": """
model: {custom: [a, b]}
training:
  seq_len: 64
  text_column: null
  data_dir: ~
optimizer:
  lr: 1e-4
  eps: 1
evaluation:
  prompt: "[training]\\nsteps = 1"
metrics:
  # all commented out
""",
    "run.json": """
{"model": {"custom": ["a", "b"]},
 "training": {"seq_len": 64, "text_column": null, "data_dir": ""},
\t"optimizer": {"lr": 1e-4, "eps": 1},
 "evaluation": {"prompt": "[training]\\nsteps = 1"}}
""",
}


SAME["run.yml"] = SAME["run.yaml"]


@pytest.mark.parametrize("name", SAME)
def test_every_format_says_the_same(name: str, tmp_path: Path) -> None:
    config = parsed(write(tmp_path / name, SAME[name]))
    assert config.model.custom == ("a", "b")
    assert (config.training.seq_len, config.training.text_column) == (64, None)
    assert config.training.data_dir is None
    assert (config.optimizer.lr, config.optimizer.eps) == (1e-4, 1.0)
    assert type(config.optimizer.eps) is float
    assert config.evaluation.prompt == "[training]\nsteps = 1"


@pytest.mark.parametrize(
    ("name", "text", "line", "rule"),
    [
        ("run.toml", "[training]\nsteps = \n", 2, "is not valid TOML: Invalid value"),
        ("run.toml", "[training]\nsteps = 1\n[training]\n", 3, "is not valid TOML"),
        ("run.toml", "\n\nx = '''\nabc", 4, "is not valid TOML: "),
        ("run.toml", "[model]\ncustom = {a.b = 1, a = 2}\n", 2, "is not valid TOML: "),
        ("run.yaml", "training:\n  steps: 1\n bad: 2\n", 3, "is not valid YAML"),
        ("run.yaml", "training:\n  steps: !!python/name:os.system\n", 2, "is not valid YAML"),
        ("run.yaml", "training: &a\n  steps: *b\n", 2, "is not valid YAML"),
        ("run.yaml", "job:\n  description: 2024-13-45\n", 2, "month must be in 1..12"),
        ("run.yaml", "a: 1\n---\nb: 2\n", 2, "is not valid YAML"),
        ("run.yaml", "\n- training\n", 2, "must be a mapping"),
        ("run.yaml", "? [a]\n: 1\n", 1, "has a key that is not text"),
        ("run.yaml", "a: \x00\n", 1, "is not valid YAML"),
        ("run.json", '{\n"training": {\n"steps": }}', 3, "is not valid JSON"),
        ("run.json", "[]", 1, "must be an object"),
    ],
)
def test_text_that_is_not_in_its_format_names_the_line(
    name: str, text: str, line: int, rule: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, text)
    [problem] = problems(path)
    assert problem.startswith(f"{path}:{line}: ")
    assert rule in problem
