"""Laws of the options of checkpoints: when they are made, what is in them, where a run starts."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file as load_tensors

from flame_accel.checkpoint import SaveSchedule, save_schedule
from flame_accel.config import CheckpointConfig, ConfigError, UserError, parse
from flame_accel.observe.meter import window_state_for_rank
from tests.helpers.runs import launch, read_records

ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
QUICK = {"evaluation.sample_tokens": 0}


def steps_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoint").iterdir())


def losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["train/loss"] for record in read_records(run)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def log(run: Path) -> str:
    return (run / "log.txt").read_text()


@pytest.fixture
def finished(train_here, flags, tmp_path) -> Path:
    """The folder of a run of eight steps with the checkpoints of step 4 and step 8."""
    folder = tmp_path / "finished"
    train_here(flags(**QUICK, **{"job.dump_folder": folder}))
    return folder


# when


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_interval_in_seconds_ends_at_the_next_reported_step():
    config = CheckpointConfig(interval_type="seconds", interval=10)
    subject = SaveSchedule(ONE_PROCESS, config, steps=100, clock=(clock := Clock()))
    due = []
    for step in range(1, 101):
        clock.now += 3
        if subject.is_due(step, logged=step % 5 == 0):
            due.append(step)
    # every fifth step is reported, after 15 seconds each
    assert due == [*range(5, 101, 5)]
    subject = SaveSchedule(ONE_PROCESS, config, steps=100, clock=(clock := Clock()))
    due = []
    for step in range(1, 101):
        clock.now += 0.6
        if subject.is_due(step, logged=step % 5 == 0):
            due.append(step)
    assert due == [20, 40, 60, 80, 100]


@pytest.mark.covers_option("checkpoint.enable_checkpoint")
def test_the_last_step_is_always_saved_and_nothing_without_checkpoints():
    never = partial(SaveSchedule, ONE_PROCESS, steps=7, clock=Clock())
    for unit in ("step", "seconds"):
        subject = never(CheckpointConfig(interval_type=unit, interval=1000))
        assert [s for s in range(1, 8) if subject.is_due(s, logged=s == 3)] == [7]
    subject = never(CheckpointConfig(enable_checkpoint=False, interval=1))
    assert not any(subject.is_due(step, logged=True) for step in range(1, 8))


@pytest.mark.parametrize("main_decides", [True, False])
def test_the_clock_of_the_main_process_decides_for_all(monkeypatch, main_decides):
    asked = []

    def gather(accelerator: SimpleNamespace, own: torch.Tensor) -> torch.Tensor:
        asked.append(bool(own))
        return torch.cat([torch.tensor([main_decides]).to(own), own])

    monkeypatch.setattr(save_schedule, "all_gather", gather)
    config = CheckpointConfig(interval_type="seconds", interval=10)
    subject = SaveSchedule(ONE_PROCESS, config, steps=100, clock=(clock := Clock()))
    clock.now = 9.99 if main_decides else 10.0
    # ranks exchange nothing where nothing is reported
    assert not subject.is_due(1, logged=False) and asked == []
    assert subject.is_due(2, logged=True) is main_decides
    assert asked == [not main_decides]


@pytest.mark.covers_option("checkpoint.interval_type")
def test_a_run_saves_by_the_clock(train_here, flags, tmp_path, monkeypatch):
    from flame_accel import train

    ticks = itertools.count()
    monkeypatch.setattr(train, "SaveSchedule", partial(SaveSchedule, clock=lambda: next(ticks)))
    options = {"checkpoint.interval_type": "seconds", "checkpoint.interval": 2}
    train_here(flags(**QUICK, **options, **{"metrics.log_freq": 2}))
    # a second passes with each report: 1, 2, 4, 6, 8
    assert steps_in(tmp_path / "run") == ["step-2", "step-6", "step-8"]


# what


WEIGHTS_ONLY = {"checkpoint.model_weights_only": True, "checkpoint.export_dtype": "bfloat16"}


@pytest.mark.covers_option("checkpoint.model_weights_only")
def test_the_last_checkpoint_can_hold_only_weights_in_the_precision_of_the_export(
    train_here, flags, tmp_path
):
    argv = flags(**QUICK, **WEIGHTS_ONLY)
    train_here(argv)
    run = tmp_path / "run"
    last, full = run / "checkpoint/step-8", run / "checkpoint/step-4"
    assert {weight.dtype for weight in weights(last).values()} == {torch.bfloat16}
    assert {weight.dtype for weight in weights(full).values()} == {torch.float32}
    assert equal(weights(last), weights(run / "hf"))
    names = {path.name for path in last.iterdir()}
    assert not names & {"optimizer", "data.json", "ranks.json", "rank-0.json"}
    assert (full / "optimizer").is_dir()
    # a finished run is finished
    exported, records = weights(run / "hf"), read_records(run)
    train_here(argv)
    assert equal(weights(run / "hf"), exported) and read_records(run) == records


def test_a_run_does_not_go_on_from_weights_alone_but_from_the_newest_full_checkpoint(
    train_here, flags, tmp_path
):
    train_here(flags(**QUICK, **WEIGHTS_ONLY))
    longer = flags(**QUICK, **{"training.steps": 10})
    with pytest.raises(UserError, match="step 8 contains only the model's weights") as raised:
        train_here(longer)
    assert "step 4 with checkpoint.load_step" in str(raised.value)
    assert "checkpoint.initial_load_path" in str(raised.value)
    train_here([*longer, "--checkpoint.load_step=4"])
    run = tmp_path / "run"
    assert list(losses(run)) == list(range(1, 11))
    assert "step-8.superseded-0" in steps_in(run)


def test_without_a_full_checkpoint_the_remedy_is_a_new_run(train_here, flags):
    train_here(flags(**QUICK, **WEIGHTS_ONLY, **{"checkpoint.interval": 100}))
    with pytest.raises(UserError) as raised:
        train_here(flags(**QUICK, **{"training.steps": 10}))
    assert "checkpoint.load_step" not in str(raised.value)
    assert "checkpoint.initial_load_path" in str(raised.value)


@pytest.mark.covers_option("checkpoint.create_seed_checkpoint")
def test_a_seed_checkpoint_holds_the_first_weights_and_starts_the_same_run(
    train_here, flags, tmp_path, finished
):
    seed = flags(**QUICK, **{"checkpoint.create_seed_checkpoint": True})
    train_here(seed)
    run = tmp_path / "run"
    assert steps_in(run) == ["step-0"]
    assert not (run / "hf").exists() and read_records(run) == []
    with pytest.raises(UserError, match="already has a checkpoint, of step 0"):
        train_here(seed)
    train_here(flags(**QUICK, **{"checkpoint.load_step": 0}))
    assert losses(run) == losses(finished)
    assert equal(weights(run / "hf"), weights(finished / "hf"))


# where from


@pytest.fixture
def seeded(train_here, flags, tmp_path):
    """The first weights of a run that starts from a path."""
    numbers = itertools.count()

    def run(path: object) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"seeded-{next(numbers)}"
        options = {
            "job.dump_folder": folder,
            "checkpoint.initial_load_path": path,
            "checkpoint.create_seed_checkpoint": True,
            "training.seed": 7,
        }
        train_here(flags(**QUICK, **options))
        return weights(folder / "checkpoint/step-0")

    return run


@pytest.mark.covers_option("checkpoint.initial_load_path")
def test_a_run_starts_with_the_weights_of_another(finished, seeded):
    for source in ("hf", "checkpoint/step-8"):
        assert equal(seeded(finished / source), weights(finished / "hf")), source
    assert not equal(seeded(finished / "checkpoint/step-4"), weights(finished / "hf"))


def test_a_model_as_transformers_saves_it_is_a_start(seeded, finished, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(finished / "hf", dtype=torch.bfloat16)
    # several files, and an index that names them
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert equal(seeded(tmp_path / "theirs"), {n: w.float() for n, w in model.state_dict().items()})


def test_only_a_run_without_checkpoints_starts_elsewhere(train_here, flags, tmp_path, finished):
    options = {"checkpoint.initial_load_path": finished / "hf", "training.steps": 4}
    run = tmp_path / "run"
    train_here(flags(**QUICK, **options))
    assert f"starting with the weights of {finished / 'hf'}" in log(run)
    # of a trained model, at the first step of a new run
    assert losses(run)[1] < losses(finished)[1]
    assert list(losses(run)) == [1, 2, 3, 4]
    again = read_records(run)
    train_here(flags(**QUICK, **options))
    assert "continuing after step 4" in log(run) and read_records(run) == again


GO_ON = {"checkpoint.initial_load_model_weights_only": False}


@pytest.mark.covers_option("checkpoint.initial_load_model_weights_only")
def test_a_run_goes_on_from_another_run_with_everything(train_here, flags, tmp_path, finished):
    source = finished / "checkpoint/step-4"
    train_here(flags(**QUICK, **GO_ON, **{"checkpoint.initial_load_path": source}))
    run = tmp_path / "run"
    assert losses(run) == {step: loss for step, loss in losses(finished).items() if step > 4}
    assert equal(weights(run / "hf"), weights(finished / "hf"))


@pytest.mark.covers_option("checkpoint.exclude_from_loading")
def test_what_is_left_out_of_another_run_begins_anew(train_here, flags, tmp_path, finished):
    start = {"checkpoint.initial_load_path": finished / "checkpoint/step-4"}

    def run(name: str, **options) -> Path:
        train_here(flags(**QUICK, **start, **options, **{"job.dump_folder": tmp_path / name}))
        return tmp_path / name

    everything = "optimizer,lr_scheduler,dataloader,train_state"
    nothing = run("nothing", **GO_ON, **{"checkpoint.exclude_from_loading": everything})
    assert losses(nothing) == losses(run("weights"))
    fresh = run("optimizer", **GO_ON, **{"checkpoint.exclude_from_loading": "optimizer"})
    # the same step and rows, another update
    assert losses(fresh)[5] == losses(finished)[5]
    assert losses(fresh)[6] != losses(finished)[6]
    fresh = run("data", **GO_ON, **{"checkpoint.exclude_from_loading": "dataloader"})
    assert list(losses(fresh)) == [5, 6, 7, 8]
    assert losses(fresh)[5] != losses(finished)[5]


def test_parts_are_left_out_of_the_named_checkpoint_and_not_at_every_start(
    train_here, flags, finished
):
    before = losses(finished)
    own = {"job.dump_folder": finished, "checkpoint.exclude_from_loading": "optimizer"}
    train_here(flags(**QUICK, **own, **{"checkpoint.load_step": 4}))
    assert losses(finished)[5] == before[5] and losses(finished)[6] != before[6]
    with pytest.raises(ConfigError, match="also a restart after an interruption"):
        train_here(flags(**QUICK, **own))


def test_what_cannot_be_started_from_is_refused(train_here, flags, tmp_path, finished, tiny_model):
    def refused(source: object, **options) -> str:
        with pytest.raises(UserError) as raised:
            start = {"checkpoint.initial_load_path": source}
            train_here(flags(**{**QUICK, **start, **options}))
        return str(raised.value)

    wider = tmp_path / "wider.json"
    wider.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"intermediate_size": 96}))
    message = refused(finished / "hf", **{"model.config": wider})
    assert "gate_proj.weight, [256, 32] there and [96, 32] here" in message
    deeper = tmp_path / "deeper.json"
    deeper.write_text(json.dumps(json.loads(tiny_model.read_text()) | {"num_hidden_layers": 3}))
    message = refused(finished / "hf", **{"model.config": deeper})
    assert "tensors missing" in message and "model.layers.2." in message
    (tmp_path / "empty").mkdir()
    assert "contains no safetensors" in refused(tmp_path / "empty")
    assert "cannot be loaded from the Hub" in refused("nobody/nothing")
    assert "is not a full checkpoint" in refused(finished / "hf", **GO_ON)
    assert "nothing is left of training.steps = 8" in refused(
        finished / "checkpoint/step-8", **GO_ON
    )
    damaged = shutil.copytree(finished / "checkpoint/step-4", tmp_path / "damaged")
    (damaged / "data.json").write_text("{}")
    assert "is damaged: data.json" in refused(damaged)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("exclude_from_loading=optimiser", "must be of optimizer, lr_scheduler"),
        ("exclude_from_loading=optimizer", "every start would leave them out"),
        ("exclude_from_loading=optimizer initial_load_path=a/b", "only the weights are loaded"),
        ("exclude_from_loading=train_state load_step=4", "cannot drop the step"),
        ("exclude_from_loading=lr_scheduler load_step=4", "a function of the step"),
        ("no_initial_load_model_weights_only", "there is no other run"),
        ("create_seed_checkpoint no_enable_checkpoint", "checkpoints are off"),
        ("create_seed_checkpoint load_step=4", "so there is none to load"),
        ("initial_load_path=./nowhere", "does not exist"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, rule):
    argv = [f"--checkpoint.{option}" for option in options.split()]
    with pytest.raises(ConfigError, match=rule):
        parse(["--model.config=a/b", "--training.dataset=a/b", *argv])


# other numbers of ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_an_open_window_is_whole_among_any_number_of_ranks(ranks):
    saved = [
        {"sums": [1.5, 2.0, 3.0, 1.0], "max_loss": 2.5},
        {"sums": [2.5, 4.0, 3.0, 1.0], "max_loss": None},
        {"sums": [4.0, 8.0, 3.0, 1.0], "max_loss": 7.0},
    ]
    shares = [window_state_for_rank(saved, rank=rank, ranks=ranks) for rank in range(ranks)]
    nats, targets, skipped, in_a_row = zip(*(share["sums"] for share in shares), strict=True)
    assert (sum(nats), sum(targets)) == (8.0, 14.0)
    assert {*skipped, *in_a_row} == {3.0, 1.0}
    assert max(share["max_loss"] for share in shares if share["max_loss"] is not None) == 7.0
    if ranks == len(saved):
        assert shares == saved


@pytest.mark.distributed
def test_seed_and_open_window_cross_numbers_of_ranks(train_here, flags, tmp_path, finished):
    seed = {
        "checkpoint.initial_load_path": finished / "hf",
        "checkpoint.create_seed_checkpoint": True,
    }
    two, one = tmp_path / "run", tmp_path / "one"
    # records of steps 1, 3, 6, 8: a window is open at step 4
    rows = {**QUICK, "metrics.log_freq": 3, "training.gradient_accumulation_steps": 2}
    train_here(flags(**rows, **seed))
    shutil.copytree(two, one)
    train_here(flags(**rows, **{"job.dump_folder": one, "checkpoint.load_step": 0}))
    halves = {**rows, "training.gradient_accumulation_steps": 1, "checkpoint.load_step": 0}
    launch(flags(**halves), config="ddp", processes=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    shutil.rmtree(two / "checkpoint/step-8")
    train_here(flags(**rows))
    assert "continuing after step 4" in log(two)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
