"""Tables: figures, differences, evaluations and events of one run and of several."""

import pytest

from flame_accel.observe.evaluations_file import Evaluation
from flame_accel.observe.report.read_runs import RunRecord
from flame_accel.observe.report.tables import (
    describe_status,
    format_count,
    format_time,
    list_differing_options,
    list_environment,
    list_evaluation_tables,
    list_events,
    list_figures,
)


def loss_run(*losses: float) -> RunRecord:
    records = [{"step": n, "eval/loss": loss} for n, loss in enumerate(losses, 1)]
    return RunRecord(name="a", records=records)


def test_the_best_of_several_runs_is_marked():
    rows = {row.name: row for row in list_figures([loss_run(3.0), loss_run(2.0), RunRecord("c")])}
    assert rows["validation loss"].cells == ["3.0000", "2.0000", ""]
    assert rows["validation loss"].best == [False, True, False]
    alone = {row.name: row for row in list_figures([loss_run(3.0)])}
    assert not any(alone["validation loss"].best)


def test_an_earlier_better_validation_is_told():
    rows = {row.name: row.cells[0] for row in list_figures([loss_run(3.0, 1.0, 2.0)])}
    assert rows["best validation loss"] == "1.0000 (step 2)"
    assert "best validation loss" not in {row.name for row in list_figures([loss_run(3.0, 1.0)])}


@pytest.mark.parametrize(
    ("ended", "recent", "status"),
    [
        ({"reason": "finished", "step": 2}, False, "finished, step 2 of 9"),
        ({"reason": "signal", "what": "SIGTERM"}, True, "stopped by a signal (SIGTERM)"),
        ({"reason": "error", "what": "E: no\nmore"}, True, "stopped by an error (E: no)"),
        ({}, True, "running, step 2 of 9"),
        ({}, False, "no end recorded, step 2 of 9"),
    ],
)
def test_the_status_says_how_far_a_run_is(ended: dict[str, object], recent: bool, status: str):
    run = RunRecord(
        name="a",
        records=[{"step": 2}],
        options={"training.steps": 9},
        ended=ended,
        is_recent=recent,
    )
    assert describe_status(run).startswith(status)
    assert describe_status(RunRecord(name="empty")) == "no records"


def test_only_options_that_differ_are_listed():
    runs = [
        RunRecord(
            "a",
            options={
                "optimizer.lr": 3e-4,
                "training.steps": 5,
                "job.dump_folder": "x",
                "a.b": "c/d",
            },
        ),
        RunRecord(
            "b", options={"optimizer.lr": 1e-3, "training.steps": 5, "new.one": True, "a.b": "c/e"}
        ),
    ]
    listed = {row.name: row.cells for row in list_differing_options(runs)}
    assert listed == {
        "optimizer.lr": ["0.0003", "0.001"],
        "a.b": ["d", "e"],
        "new.one": ["", "true"],
    }


def test_evaluations_are_those_of_the_last_step_with_their_errors():
    def evaluated(step: int, kind: str, name: str, **metrics: float) -> Evaluation:
        return Evaluation(step, step, kind, name, metrics)  # type: ignore[arg-type]

    first = RunRecord(
        name="a",
        evaluations=[
            evaluated(2, "lm_eval", "piqa", **{"acc,none": 0.5, "acc_stderr,none": 0.01}),
            evaluated(9, "set", "code", loss=1.5),
            evaluated(5, "set", "code", loss=2.5),
        ],
    )
    second = RunRecord(name="b", evaluations=[evaluated(9, "set", "code", loss=1.0)])
    sets, tasks = list_evaluation_tables([first, second])
    assert (sets.title, tasks.title) == ("Validation sets", "lm-eval tasks")
    assert [(r.name, r.cells, r.best) for r in sets.rows] == [
        ("code · loss", ["1.5000", "1.0000"], [False, True])
    ]
    assert [(r.name, r.cells) for r in tasks.rows] == [("piqa · acc", ["0.5000 ± 0.0100", ""])]


def test_events_say_what_happened_and_why():
    run = RunRecord(
        name="a",
        starts=[
            {"step": 0, "changed_options": []},
            {
                "step": 7,
                "device": "H200",
                "processes": 2,
                "changed_options": [{"option": "optimizer.lr", "before": 1e-3, "after": 3e-4}],
            },
        ],
        skipped=[
            {"step": 9, "rewound_to": "step-5"},
            {"step": 3, "reason": "the norm of its gradient is nan"},
        ],
    )
    assert [tuple(event) for event in list_events(run)] == [
        (3, "skipped", "the norm of its gradient is nan"),
        (7, "restart", "resumed on H200, 2 processes; optimizer.lr: 0.001 → 0.0003"),
        (9, "rewind", "went back to step-5"),
    ]


def test_the_environment_names_what_ran():
    environment = {
        "device": "H200",
        "packages": {"torch": "2.13.0", "tilelang": None},
        "git": {"commit": "0123456789abcdef", "dirty": True},
    }
    rows = list_environment([RunRecord("a", environment=environment), RunRecord("b")])
    assert {row.name: row.cells for row in rows} == {
        "device": ["H200", ""],
        "git commit": ["0123456789ab with changes", ""],
        "torch": ["2.13.0", ""],
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.5 s"),
        (119.9, "2 min 00 s"),
        (3599, "60 min"),
        (3700, "1 h 02 min"),
        (2 * 86400 + 7200, "2 d 2 h"),
    ],
)
def test_times_are_said_as_people_do(seconds: float, text: str):
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (9999, "9,999"), (307_200, "307 k"), (1.5e7, "15 M"), (1.5e10, "15 B")],
)
def test_large_numbers_have_units(value: float, text: str):
    assert format_count(value) == text
