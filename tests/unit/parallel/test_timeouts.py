"""How long ranks wait for each other, and the error of one that waited in vain."""

import os
import re
import socket
from types import SimpleNamespace

import pytest

from flame_accel.config import CommConfig, UserError
from flame_accel.parallel import timeouts
from flame_accel.parallel.timeouts import (
    enable_flight_recorder,
    explain_timeout_and_connection_errors,
)
from tests.helpers.runs import ROOT, launch

PROGRAMS = ROOT / "tests/helpers/rank_programs.py"


@pytest.mark.covers_option("comm.train_timeout_seconds")
@pytest.mark.distributed
@pytest.mark.parametrize("program", ["late_rank", "slow_files"])
def test_a_rank_that_is_missing_ends_the_run_after_the_training_timeout(program):
    """In groups of meshes as well; a rank that is only busy with files ends nothing.

    The program sets comm.train_timeout_seconds.
    """
    printed = launch([program], config="hsdp", processes=4, script=PROGRAMS, fails=True)
    waited = re.search(r"rank 1 waited ([0-9.]+) s", printed)
    assert waited and 0.7 < float(waited[1]) < 5
    assert "another process of the run did not arrive in time" in printed
    assert "Traceback" not in printed


@pytest.mark.covers_option("comm.init_timeout_seconds")
def test_a_rank_that_never_starts_ends_the_run_after_the_initial_timeout(build_on_cpu):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    comm = CommConfig(init_timeout_seconds=1)
    with (
        pytest.raises(UserError, match="did not arrive in time") as caught,
        explain_timeout_and_connection_errors(comm),
    ):
        build_on_cpu(comm, **ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert "comm.init_timeout_seconds" in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer",
        "gloo: Failed to recv, got 0 bytes. Connection was likely closed.",
    ],
)
def test_a_rank_whose_fellow_has_ended_says_so(message: str):
    with (
        pytest.raises(UserError, match="has ended"),
        explain_timeout_and_connection_errors(CommConfig()),
    ):
        raise RuntimeError(message)


def test_errors_that_are_not_timeouts_are_passed_on():
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        explain_timeout_and_connection_errors(CommConfig()),
    ):
        raise RuntimeError("out of memory")


@pytest.mark.covers_option("comm.trace_buf_size")
def test_the_flight_recorder_has_the_size_that_was_asked_for(build_on_cpu, tmp_path):
    enable_flight_recorder(CommConfig(trace_buf_size=77), "run")
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "77"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == "run/comm_trace_"


def test_the_flight_recorder_can_be_off_and_one_process_has_none(build_on_cpu):
    build_on_cpu()
    assert "TORCH_FR_BUFFER_SIZE" not in os.environ
    enable_flight_recorder(CommConfig(trace_buf_size=0), "run")
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "0"
    assert "TORCH_NCCL_DUMP_ON_TIMEOUT" not in os.environ


def test_the_group_of_a_thread_beside_training_keeps_its_timeout(monkeypatch: pytest.MonkeyPatch):
    changed: dict[str, float] = {}
    torch_groups = SimpleNamespace(
        _world=SimpleNamespace(pg_map=dict.fromkeys(("training", "mesh", "beside"))),
        _set_pg_timeout=lambda limit, group: changed.update({group: limit.total_seconds()}),
    )
    monkeypatch.setattr(timeouts, "distributed_c10d", torch_groups)
    monkeypatch.setattr(timeouts, "groups_that_keep_their_timeout", {"beside"})
    several = SimpleNamespace(num_processes=2, wait_for_everyone=lambda: None)
    timeouts.wait_and_set_train_timeout(several, CommConfig(train_timeout_seconds=7))
    assert changed == {"training": 7, "mesh": 7}
