"""Several machines: two launchers with a rendezvous train what one process trains.

The machines are network namespaces where this user may make some, with no road between them but a
virtual cable; elsewhere both launchers share the loopback device.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.runs import ROOT, launch, launch_environment, read_records

pytestmark = pytest.mark.distributed


class Machine(NamedTuple):
    """How to run a command there, and what the environment has to say."""

    prefix: tuple[str, ...]
    environment: dict[str, str]


def ip(*words: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["ip", *words], capture_output=True).returncode == 0
    return False


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two of them."""
    spaces, cables = [f"flame{os.getpid()}{i}" for i in "ab"], [f"fl{os.getpid()}{i}" for i in "ab"]
    made = all(ip("netns", "add", space) for space in spaces) and ip(
        *("link", "add", cables[0], "netns", spaces[0], "type", "veth"),
        *("peer", "name", cables[1], "netns", spaces[1]),
    )
    if made:
        for i, (space, cable) in enumerate(zip(spaces, cables, strict=True), 1):
            made &= ip("-n", space, "addr", "add", f"10.211.0.{i}/24", "dev", cable)
            made &= ip("-n", space, "link", "set", cable, "up")
            made &= ip("-n", space, "link", "set", "lo", "up")
    if made:
        yield [
            Machine(
                ("ip", "netns", "exec", space),
                # the host's name leads nowhere there
                {"MASTER_ADDR": "10.211.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": cable},
            )
            for space, cable in zip(spaces, cables, strict=True)
        ]
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        yield [Machine((), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})] * 2
    for space in spaces:
        ip("netns", "delete", space)


def run_on(machines: list[Machine], argv: list[str], output: Path) -> list[str]:
    """Runs train.sh on every machine at once; returns what each printed."""
    started = []
    for rank, machine in enumerate(machines):
        own = {"NNODE": str(len(machines)), "NODE_RANK": str(rank), "NGPU": "1"}
        with (output / f"machine-{rank}.txt").open("w") as printed:
            started.append(
                subprocess.Popen(
                    [*machine.prefix, "bash", str(ROOT / "train.sh"), *argv],
                    env=launch_environment(
                        ACCELERATE_CONFIG="multi_node", **machine.environment, **own
                    ),
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    try:
        codes = [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = [(output / f"machine-{rank}.txt").read_text() for rank in range(len(machines))]
    assert codes == [0] * len(machines), said[0][-4000:] + said[1][-4000:]
    return said


def test_two_machines_train_what_one_process_trains(
    machines: list[Machine], flags: Callable[..., list[str]], tmp_path: Path
):
    packed: dict[str, Any] = {
        "training.varlen": True,
        "training.context_len": 24,
        "training.steps": 4,
        "evaluation.sample_tokens": 0,
    }
    two = flags(**{"job.dump_folder": tmp_path / "two", "training.batch_size": 2, **packed})
    one = flags(**{"job.dump_folder": tmp_path / "one", "training.batch_size": 4, **packed})
    said = run_on(machines, two, tmp_path)
    launch(one, config="cpu", processes=1)
    assert "devices: 2 x cpu" in said[0] and "FSDP2" in said[0]
    # only the first of all processes speaks and writes
    assert "step 4/4" in said[0] and "step 4/4" not in said[1]
    assert (tmp_path / "two/hf/model.safetensors").is_file()
    for key in ("train/loss", "optimizer/grad_norm"):
        curves = [
            [record[key] for record in read_records(tmp_path / run)] for run in ("one", "two")
        ]
        assert len(curves[0]) == 4 and curves[1] == pytest.approx(curves[0], rel=1e-5)
