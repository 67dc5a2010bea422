"""The evaluate command: lm-eval's scores, where they go, and what it refuses.

What becomes of them in a model card is tested in tests/unit/hub/test_card_benchmarks.py.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from flame_accel.__main__ import main
from flame_accel.checkpoint.run_lock import RunLock
from flame_accel.observe.evaluations_file import read_evaluations
from tests.helpers.harness_tasks import CHOICES, TASKS, write_tasks
from tests.helpers.local_hub.card_rules import judge_card
from tests.helpers.runs import ROOT, file_digests, launch, run_python

VERSION = {"lm_eval_version": "0.4.13"}
NAMES = "python_choice,python_text,python_answer"
OWN_TEXT = "A paragraph of the user's.\n"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


@pytest.fixture(autouse=True)
def no_description_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds, and is in no record."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: results.update(VERSION))


def evaluate(model: Path, tasks: Path, *arguments: object, names: str = NAMES) -> None:
    main(["evaluate", str(model), "--tasks", names, "--include_path", str(tasks)]
         + [str(argument) for argument in arguments])  # fmt: skip


def scores_of_lm_eval(export: Path, tasks: Path) -> dict[str, dict[str, float]]:
    """What lm-eval by itself finds, with the code that comes with the model."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model="hf",
        model_args=f"pretrained={export},trust_remote_code=True",
        tasks=NAMES.split(","),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
    )
    assert results is not None
    return read_scores(results)


def read_scores(results: Any) -> dict[str, dict[str, float]]:
    """The numbers of results as lm-eval returns or writes them, without standard errors."""
    return {
        task: {
            key.removesuffix(",none"): value
            for key, value in found.items()
            if key.endswith(",none") and "_stderr" not in key
        }
        for task, found in results["results"].items()
    }


def recorded_scores(run: Path) -> dict[str, dict[str, float]]:
    return {
        each.name: {k: v for k, v in each.metrics.items() if not k.endswith("_stderr")}
        for each in read_evaluations(run)
        if each.kind == "lm_eval"
    }


def result_files(run: Path) -> list[Path]:
    return sorted((run / "lm_eval").glob("results_*.json"))


def test_the_scores_are_those_of_lm_eval_on_the_export_and_stand_in_record_file_and_card(
    finished: Path, tasks: Path
):
    card = finished / "hf/README.md"
    card.write_text(card.read_text() + OWN_TEXT)
    evaluate(finished, tasks, "--log_samples")
    expected = scores_of_lm_eval(finished / "hf", tasks)
    assert set(expected) == set(NAMES.split(","))
    assert recorded_scores(finished) == expected
    (file,) = result_files(finished)
    assert read_scores(json.loads(file.read_text())) == expected
    (answers,) = (finished / "lm_eval").glob("samples_python_choice_*.jsonl")
    assert len(answers.read_text().splitlines()) == len(CHOICES)
    first = read_evaluations(finished)[0]
    assert (first.step, first.tokens, first.details["model"]) == (8, 8 * 4 * 64, "hf")
    assert (finished / first.details["results_file"]) == file
    text = card.read_text()
    results = ModelCard(text).data.eval_results or []
    in_card = {
        name: {
            r.metric_name: r.metric_value
            for r in results
            if r.dataset_name == f"{name} ({len(TASKS[name][1])} examples)"
        }
        for name in expected
    }
    assert in_card == expected
    assert judge_card(text) == ([], [])
    assert OWN_TEXT in text and str(finished) not in text
    assert "python_choice" in (finished / "report.html").read_text()


def test_a_group_is_recorded_with_the_average_that_it_names(
    finished: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
):
    reported = {"python_choice": ["acc_norm"], "python_text": ["bits_per_byte"]}
    group = {
        "group": "mine",
        "task": ["python_choice", "python_text"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1, "reported": reported, "averaged": ["acc_norm"]},
    }
    (tasks / "mine.yaml").write_text(json.dumps(group))
    evaluate(finished, tasks, names="mine")
    found = recorded_scores(finished)
    assert set(found) == {"python_choice", "python_text", "mine"}
    acc, norm = found["python_choice"]["acc"], found["python_choice"]["acc_norm"]
    assert found["mine"] == {"acc": acc, "average": norm}
    assert f"mine: average {norm:.4f}" in capsys.readouterr().out
    assert "| `mine` |" in (finished / "hf/README.md").read_text()


def test_evaluating_again_replaces_the_record_and_keeps_both_files(
    finished: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
):
    evaluate(finished, tasks, names="python_choice,python_text")
    before = recorded_scores(finished)
    card = file_digests(finished / "hf")["README.md"]
    evaluate(finished, tasks, names="python_choice")
    assert recorded_scores(finished) == before
    assert len(result_files(finished)) == 2
    assert file_digests(finished / "hf")["README.md"] == card
    # a try is another record, and stands on no card
    evaluate(finished, tasks, "--limit=1", names="python_choice")
    assert {"python_choice", "python_choice (limit 1)"} < set(recorded_scores(finished))
    assert file_digests(finished / "hf")["README.md"] == card
    assert "README.md" in capsys.readouterr().out


def test_a_checkpoint_is_evaluated_at_its_own_step_and_its_export_says_so(
    finished: Path, tasks: Path, tmp_path: Path
):
    card = file_digests(finished / "hf")["README.md"]
    checkpoint = finished / "checkpoint/step-4"
    evaluate(checkpoint, tasks, names="python_choice")
    (record,) = read_evaluations(finished)
    assert (record.step, record.details["model"]) == (4, "checkpoint/step-4")
    assert file_digests(finished / "hf")["README.md"] == card
    main(["export", str(checkpoint), str(tmp_path / "exported")])
    assert (
        f"| `python_choice` ({len(CHOICES)} examples) |"
        in (tmp_path / "exported/README.md").read_text()
    )


def test_a_model_is_not_given_the_cached_answers_of_another(
    finished: Path, tasks: Path, tmp_path: Path
):
    cache = ("--use_cache", tmp_path / "answers")
    evaluate(finished / "checkpoint/step-4", tasks, *cache, names="python_text")
    evaluate(finished, tasks, *cache, names="python_text")
    evaluate(finished, tasks, *cache, names="python_text")
    with_cache = [each.metrics for each in read_evaluations(finished)]
    (finished / "evaluations.jsonl").unlink()
    evaluate(finished / "checkpoint/step-4", tasks, names="python_text")
    evaluate(finished, tasks, names="python_text")
    assert [each.metrics for each in read_evaluations(finished)] == with_cache
    assert with_cache[0] != with_cache[1]
    assert len(list(tmp_path.glob("answers-*.db"))) == 2


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_of_a_run_that_is_going_on_is_only_read(
    finished: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = RunLock(finished)
    run.acquire()
    before = all_files(finished)
    with pytest.raises(SystemExit) as ended:
        evaluate(finished, tasks, names="python_choice")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "another run is going on" in said and "--output_path" in said
    evaluate(finished, tasks, "--output_path", tmp_path / "results", names="python_choice")
    assert "is only read" in capsys.readouterr().out
    assert len(list((tmp_path / "results").rglob("results_*.json"))) == 1
    assert all_files(finished) == before
    run.release()


def test_a_model_in_no_run_is_evaluated_into_a_folder(
    finished: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export = shutil.copytree(finished / "hf", tmp_path / "alone")
    before = all_files(export)
    monkeypatch.chdir(tmp_path)
    evaluate(export, tasks, names="python_choice")
    assert len(list((tmp_path / "lm_eval/alone").glob("results_*.json"))) == 1
    assert all_files(export) == before


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_share_the_examples(finished: Path, tasks: Path):
    evaluate(finished, tasks)
    expected = recorded_scores(finished)
    (finished / "evaluations.jsonl").unlink()
    printed = launch(
        ["evaluate", str(finished), "--tasks", NAMES, "--include_path", str(tasks)],
        config="cpu",
        processes=2,
        script=ROOT / "flame_accel/__main__.py",
    )
    assert printed.count("python_answer|") == 1, printed
    found = recorded_scores(finished)
    assert found.keys() == expected.keys()
    for name, metrics in expected.items():
        assert found[name] == pytest.approx(metrics, rel=1e-12)


@pytest.mark.slow
def test_the_program_lm_eval_finds_the_same_scores(finished: Path, tasks: Path, tmp_path: Path):
    evaluate(finished, tasks)
    arguments = {
        "--model": "hf",
        "--model_args": f"pretrained={finished / 'hf'},trust_remote_code=True",
        "--tasks": NAMES,
        "--include_path": str(tasks),
        "--output_path": str(tmp_path / "results"),
    }
    words = [word for pair in arguments.items() for word in pair]
    done = run_python(["-m", "lm_eval", *words])
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").rglob("results_*.json")
    assert recorded_scores(finished) == read_scores(json.loads(file.read_text()))


def remove_tokenizer(run: Path) -> None:
    for path in (run / "hf").glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "code", "messages"),
    [
        (["--tasks", ","], 2, ["names no task"]),
        (["--include_path", "nowhere"], 2, ["--include_path nowhere", "no such folder"]),
        (["--limit", "0"], 2, ["--limit 0", "above 0"]),
        (["--batch_size", "many"], 2, ["--batch_size many"]),
        (["--metadata", "{"], 2, ["--metadata", "JSON"]),
        (["--fewshot_as_multiturn"], 2, ["--apply_chat_template"]),
        (["--apply_chat_template"], 1, ["no chat template"]),
        (["--model_args", "max_length"], 2, ["KEY=VALUE"]),
        (["--model_args", "device=cpu"], 2, ["--device"]),
        (["--model_args", "max_lenght=8"], 2, ["max_lenght"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_answered_with_the_argument(
    arguments: list[str],
    code: int,
    messages: list[str],
    finished: Path,
    tasks: Path,
    capsys: pytest.CaptureFixture[str],
):
    before = all_files(finished)
    with pytest.raises(SystemExit) as ended:
        evaluate(finished, tasks, *arguments, names="python_choice")
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert all(message in said for message in messages) and "Traceback" not in said, said
    assert all_files(finished) == before


def test_a_model_without_tokenizer_is_refused(
    finished: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
):
    remove_tokenizer(finished)
    with pytest.raises(SystemExit):
        evaluate(finished / "hf", tasks)
    assert "has no tokenizer" in capsys.readouterr().err


def test_without_lm_eval_the_command_to_install_it_is_named(
    finished: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        evaluate(finished, tasks)
    assert ended.value.code == 2
    assert 'pip install "lm-eval[ruler]>=' in capsys.readouterr().err
