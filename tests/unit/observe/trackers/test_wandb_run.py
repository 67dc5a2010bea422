"""W&B online, with a server in memory: which run and which steps it ends up with."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flame_accel.observe.trackers import RunDescription, TrackerIdentities
from flame_accel.observe.trackers.wandb_run import WandbRun

RECORDS = [{"step": step, "train/loss": 1 / step} for step in (2, 4, 6, 8)]


class Server:
    """The runs of a W&B server by id, with their steps, behind the interface of wandb."""

    class Error(Exception):
        """As wandb.Error."""

    def __init__(self, *, rewinds: bool) -> None:
        self.rewinds = rewinds
        self.steps: dict[str, list[int]] = {}
        self.inits: list[dict[str, Any]] = []
        self.config = SimpleNamespace(update=lambda *_, **__: None)

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))

    def init(self, **options: Any) -> SimpleNamespace:
        self.inits.append(options)
        if "resume_from" in options:
            if not self.rewinds:
                raise self.Error("rewinding is not enabled")
            run_id, step = options["resume_from"].split("?_step=")
            self.steps[run_id] = [each for each in self.steps[run_id] if each <= int(step)]
        steps = self.steps.setdefault(options["id"], [])

        def log(values: dict[str, float], step: int) -> None:
            # as W&B does it
            if not steps or step > steps[-1]:
                steps.append(step)

        return SimpleNamespace(
            id=options["id"],
            name=options["name"],
            url="https://wandb.example/" + options["id"],
            offline=False,
            settings=SimpleNamespace(sync_file=""),
            starting_step=steps[-1] + 1 if steps else 0,
            log=log,
            finish=lambda: None,
        )


@pytest.fixture
def resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`resume(server, step)`: a start after a step, to the end; the steps of its run."""
    for name in ("WANDB_DIR", "WANDB_NAME", "WANDB_PROJECT", "WANDB_RESUME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def start(server: Server, step: int) -> list[int]:
        monkeypatch.setitem(sys.modules, "wandb", server)
        identities = TrackerIdentities(tmp_path)
        description = RunDescription("project", "name", {}, tmp_path, tmp_path)
        run = WandbRun("wandb", description, identities)
        recorded = [record for record in RECORDS if record["step"] <= step]
        count = run.open(recorded, step)
        for record in RECORDS[count:]:
            run.log(record)
        run.close()
        identity = TrackerIdentities(tmp_path).get("wandb")
        assert identity is not None and identity.url.endswith(identity.id)
        return server.steps[identity.id]

    return start


@pytest.fixture(autouse=True)
def as_a_single_process(monkeypatch: pytest.MonkeyPatch):
    """Accelerate's tracker asks whether it is in the main process."""
    from accelerate.state import PartialState

    PartialState._reset_state()
    PartialState(cpu=True)
    yield
    PartialState._reset_state()


@pytest.mark.parametrize("held", [[], [2], [2, 4]])
def test_what_the_server_lost_is_sent_to_the_same_run(
    resume: Callable[..., list[int]], held: list[int]
):
    server = Server(rewinds=False)
    resume(server, 0)
    (run_id,) = server.steps
    server.steps[run_id][:] = held
    assert resume(server, 4) == [2, 4, 6, 8] and list(server.steps) == [run_id]
    assert [init["resume"] for init in server.inits] == ["allow", "allow"]


def test_steps_that_come_again_are_rewound_where_the_server_can(
    resume: Callable[..., list[int]],
):
    server = Server(rewinds=True)
    resume(server, 0)
    assert resume(server, 5) == [2, 4, 6, 8] and len(server.steps) == 1
    assert server.inits[-1]["resume_from"].endswith("?_step=4")


def test_a_new_run_gets_all_where_the_server_cannot_rewind(
    resume: Callable[..., list[int]], log: pytest.LogCaptureFixture
):
    server = Server(rewinds=False)
    resume(server, 0)
    (first,) = server.steps
    assert resume(server, 5) == [2, 4, 6, 8]
    _, second = server.steps
    assert f"run {first} has steps after 5" in log.text and second in log.text
    # from here on it is the run
    server.steps[second][:] = [2]
    assert resume(server, 4) == [2, 4, 6, 8] and list(server.steps) == [first, second]


def test_variables_of_wandb_win(
    resume: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    server = Server(rewinds=False)
    monkeypatch.setenv("WANDB_NAME", "given name")
    monkeypatch.setenv("WANDB_PROJECT", "given project")
    monkeypatch.setenv("WANDB_RUN_ID", "given-id")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    resume(server, 0)
    (init,) = server.inits
    assert (init["name"], init["project"], init["id"]) == (
        *("given name", "given project"),
        "given-id",
    )
    assert "dir" not in init
