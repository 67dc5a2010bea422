"""A restarted run has a part of the launcher's store for itself."""

import os
import socket

import pytest
import torch.distributed as dist

from flame_accel.parallel.restarts import RESTART_COUNT, init_method_if_restarted


def test_an_attempt_does_not_see_what_the_one_before_has_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(RESTART_COUNT, raising=False)
    assert init_method_if_restarted() is None
    # what the launcher keeps
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = dist.TCPStore("127.0.0.1", port, is_master=True)
    found = {}
    for attempt in ("0", "1", "2"):
        for name, value in {
            RESTART_COUNT: attempt,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }.items():
            monkeypatch.setenv(name, value)
        url = init_method_if_restarted() or "env://"
        store, rank, size = next(iter(dist.rendezvous(url, rank=0, world_size=2)))
        assert (rank, size) == (0, 2)
        found[attempt] = store.check(["address"])
        store.set("address", "of a process that will be gone")
    assert found == {"0": False, "1": False, "2": False}
    assert kept.check(["address"]) and os.environ[RESTART_COUNT] == "2"
