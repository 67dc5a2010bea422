"""Tasks are found with their data before any model is loaded, or the error names what is wrong."""

from pathlib import Path

import lm_eval.tasks
import pytest
import yaml

from flame_accel.config import UserError
from flame_accel.evaluation.harness.tasks import (
    GROUPS_FOLDER,
    OFFLINE_VARIABLES,
    check_unsafe_code_is_confirmed,
    find_longest_ruler_prompt,
    load_tasks,
)
from tests.helpers.harness_tasks import CHOICE_TASK, CHOICES, write_task, write_tasks


def load_names(folder: Path, *names: str) -> set[str]:
    tasks = load_tasks(names, include_paths=[folder], metadata={})
    return {task.task_name for task in tasks.list_tasks()}


@pytest.fixture
def without_tasks_of_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 15,000 files are not read."""
    (tmp_path / "none").mkdir()
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "none/manager.py"))


def test_tasks_are_found_by_name_pattern_and_file(tmp_path: Path, without_tasks_of_lm_eval: None):
    write_tasks(tmp_path)
    assert load_names(tmp_path, "python_choice") == {"python_choice"}
    assert load_names(tmp_path, "python_*") == {"python_choice", "python_text", "python_answer"}
    assert load_names(tmp_path, str(tmp_path / "python_text.yaml")) == {"python_text"}


def write_group(folder: Path, name: str, *members: str) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": [*members]}))


def test_a_task_that_a_group_brings_along_is_taken_once(
    tmp_path: Path, without_tasks_of_lm_eval: None
):
    write_tasks(tmp_path)
    write_group(tmp_path, "both", "python_choice", "python_text")
    tasks = load_tasks(["python_choice", "both"], include_paths=[tmp_path], metadata={})
    assert [task.task_name for task in tasks.list_tasks()] == ["python_choice", "python_text"]
    write_group(tmp_path, "other", "python_text")
    with pytest.raises(UserError, match="both and other both hold python_text"):
        load_names(tmp_path, "both", "other")


def test_what_cannot_be_evaluated_is_named_with_the_reason(
    tmp_path: Path, without_tasks_of_lm_eval: None, monkeypatch: pytest.MonkeyPatch
):
    write_tasks(tmp_path)
    write_group(tmp_path, "empty")
    write_task(tmp_path, "python_none", CHOICE_TASK, CHOICES)
    add_function(tmp_path, "python_none", "def process(docs):\n    return docs.select([])\n")
    write_task(tmp_path, "python_lost", CHOICE_TASK, CHOICES)
    (tmp_path / "python_lost.jsonl").unlink()
    write_task(tmp_path, "python_split", {**CHOICE_TASK, "test_split": None}, CHOICES)
    on_hub = {**CHOICE_TASK, "dataset_path": "org/absent", "dataset_kwargs": {}}
    write_task(tmp_path, "python_hub", on_hub, CHOICES)
    write_group(tmp_path, "partly", "python_hub", "python_choice", "python_lost")
    (tmp_path / "broken.yaml").write_text("task: [")
    for name, *expected in (
        ("python_choise", "no such task", "did you mean python_choice", "broken.yaml: while"),
        ("nowhere.yaml", "no such file or task"),
        ("empty", "holds no task"),
        ("python_none", "size 0", "check the YAML file"),
        ("python_lost", "python_lost.jsonl", "check the YAML file"),
        ("python_split", "must have valid or test docs"),
        ("python_hub", "python_hub: ", "org/absent", "HF_HUB_OFFLINE"),
        ("partly", "python_lost: ", "org/absent", "--tasks python_choice"),
    ):
        with pytest.raises(UserError) as raised:
            load_names(tmp_path, name)
        assert all(part in str(raised.value) for part in expected), (name, str(raised.value))
    # a line for each reason
    assert len([line for line in str(raised.value).splitlines() if "python_" in line]) == 3
    for name in OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="this needs a network once: check it") as raised:
        load_names(tmp_path, "python_hub")
    assert "unset" not in str(raised.value)


def test_a_task_that_runs_code_of_the_model_has_to_be_confirmed(tmp_path: Path):
    write_task(tmp_path, "python_run", {**CHOICE_TASK, "unsafe_code": True}, CHOICES)
    write_tasks(tmp_path, "python_choice")
    check_unsafe_code_is_confirmed(
        load_tasks(["python_choice"], include_paths=[tmp_path], metadata={})
    )
    with pytest.raises(UserError, match="--confirm_run_unsafe_code"):
        check_unsafe_code_is_confirmed(
            load_tasks(["python_run"], include_paths=[tmp_path], metadata={})
        )


def add_function(folder: Path, task: str, code: str) -> None:
    """Has a task filter its examples with the function `process` of this code."""
    (folder / f"{task}_code.py").write_text(code)
    with (folder / f"{task}.yaml").open("a") as file:
        file.write(f"process_docs: !function {task}_code.process\n")


def test_a_missing_package_is_named(tmp_path: Path, without_tasks_of_lm_eval: None):
    write_task(tmp_path, "python_choice", CHOICE_TASK, CHOICES)
    add_function(tmp_path, "python_choice", "import a_package_that_is_not_there\n")
    with pytest.raises(UserError, match=r"a_package_that_is_not_there(.|\n)*pip install"):
        load_names(tmp_path, "python_choice")


def test_every_member_of_the_shipped_groups_is_a_task_of_lm_eval():
    folder = Path(lm_eval.tasks.__file__).parent
    names = ("arc", "fda", "hellaswag", "lambada", "piqa", "ruler", "siqa", "squad_completion")
    names += ("super_glue/boolq", "swde", "wikitext", "winogrande")
    places: list[str | Path] = [folder / name for name in names]
    known = lm_eval.tasks.TaskManager(include_path=places, include_defaults=False)
    files = sorted(GROUPS_FOLDER.glob("*.yaml"))
    assert [path.stem for path in files] == ["recall", "single_needle", "zero_shot"]
    for path in files:
        group = yaml.safe_load(path.read_text())
        assert group["group"] == path.stem and set(group["task"]) <= set(known.all_subtasks)
        assert set(group["metadata"].get("reported", {})) <= set(group["task"])
    assert "ruler" in known.all_groups


def test_prompts_of_ruler_are_as_long_as_the_metadata_say(
    tmp_path: Path, without_tasks_of_lm_eval: None
):
    write_task(tmp_path, "niah_like", CHOICE_TASK, CHOICES)
    write_tasks(tmp_path, "python_choice")
    tasks = load_tasks(["niah_like"], include_paths=[tmp_path], metadata={})
    assert find_longest_ruler_prompt(tasks, {}) == 4096
    assert find_longest_ruler_prompt(tasks, {"max_seq_lengths": [1024, 8192]}) == 8192
    other = load_tasks(["python_choice"], include_paths=[tmp_path], metadata={})
    assert find_longest_ruler_prompt(other, {}) is None
