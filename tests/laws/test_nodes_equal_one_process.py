"""Several machines: two launchers with a rendezvous train what one process trains.

The machines are network namespaces, connected only by a virtual Ethernet pair, if this user may
create them; otherwise both launchers share the loopback device.
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
    """Prefix of a command that runs there, and the environment variables that it needs."""

    prefix: tuple[str, ...]
    environment: dict[str, str]


def run_ip(*words: str) -> bool:
    """Whether a command of iproute2 succeeded."""
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["ip", *words], capture_output=True).returncode == 0
    return False


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two machines that can reach each other."""
    namespaces, interfaces = (
        [f"flame{os.getpid()}{i}" for i in "ab"],
        [f"fl{os.getpid()}{i}" for i in "ab"],
    )
    created = all(run_ip("netns", "add", namespace) for namespace in namespaces) and run_ip(
        *("link", "add", interfaces[0], "netns", namespaces[0], "type", "veth"),
        *("peer", "name", interfaces[1], "netns", namespaces[1]),
    )
    if created:
        for i, (namespace, interface) in enumerate(zip(namespaces, interfaces, strict=True), 1):
            created &= run_ip("-n", namespace, "addr", "add", f"10.211.0.{i}/24", "dev", interface)
            created &= run_ip("-n", namespace, "link", "set", interface, "up")
            created &= run_ip("-n", namespace, "link", "set", "lo", "up")
    if created:
        yield [
            Machine(
                ("ip", "netns", "exec", namespace),
                # the name of the host does not resolve there
                {
                    "MASTER_ADDR": "10.211.0.1",
                    "MASTER_PORT": "29500",
                    "GLOO_SOCKET_IFNAME": interface,
                },
            )
            for namespace, interface in zip(namespaces, interfaces, strict=True)
        ]
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        yield [Machine((), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})] * 2
    for namespace in namespaces:
        run_ip("netns", "delete", namespace)


def run_on_machines(machines: list[Machine], argv: list[str], output: Path) -> list[str]:
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
    said = run_on_machines(machines, two, tmp_path)
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
