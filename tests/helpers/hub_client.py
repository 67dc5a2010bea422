"""Points Hugging Face's client at the local Hub: in this process, and in others.

`huggingface_hub` reads most of its environment once, when it is imported, and other packages copy
what it read; so in this process its constants are set, and set back after the test. Code that a
repository brings (`trust_remote_code`) is tested in another process: imported modules stay.
"""

import argparse
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, file_download, hf_api
from huggingface_hub.utils import _http

from flame_accel.commands import push
from tests.helpers.hub_server import WRITE_TOKEN, HubServer

REPO = "tester/model"
"""Where tests upload to."""


def client_environment(server: HubServer, home: Path) -> dict[str, str]:
    """Variables with which a process uses the local Hub, and `home` for all that it keeps.

    Xet is off: the server has LFS only, and a client with `hf_xet` uploads through Xet without
    asking what the server has.
    """
    return {
        "HF_ENDPOINT": server.endpoint,
        "HF_TOKEN": WRITE_TOKEN,
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # a proxy of this machine's network does not reach this server
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def point_client_at(server: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the client of this process, and of those that it starts, use the local Hub."""
    server.environment = client_environment(server, home)
    for variable, value in server.environment.items():
        monkeypatch.setenv(variable, value)
    for variable in ("HF_OIDC_RESOURCE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(variable, raising=False)

    file_path = "{repo_id}/resolve/{revision}"
    read_at_import: dict[str, str | bool] = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.endpoint}/{file_path}/{{filename}}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }
    for name, value in read_at_import.items():
        monkeypatch.setattr(constants, name, value)
    # the object behind `huggingface_hub.upload_folder` and the like
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr(hf_api.api, "_whoami_cache", {})

    copied: dict[str, dict[str, str | bool | Path]] = {
        "datasets.config": {
            "HF_ENDPOINT": server.endpoint,
            "HUB_DATASETS_URL": f"{server.endpoint}/datasets/{file_path}/{{path}}",
            "HF_HUB_OFFLINE": False,
            "HF_DATASETS_OFFLINE": False,
            "HF_DATASETS_CACHE": home / "datasets",
        },
    }
    for module, values in copied.items():
        if module in sys.modules:
            for name, value in values.items():
                monkeypatch.setattr(sys.modules[module], name, value)
    # its connections belong to the environment before
    close_session()


class _TimeWithoutWaits:
    """The module `time` for a module of the client, with waits that are only noted."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def skip_retry_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Has the client of this process retry at once; returns the seconds that it would have waited.

    The list grows with each retry.
    """
    clock = _TimeWithoutWaits()
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", clock)
    return clock.waits


def push_command(*arguments: object) -> None:
    """What `flame-accel push` does, with the errors that it shows."""
    parser = argparse.ArgumentParser()
    push.add_arguments(parser)
    push.run(parser.parse_args([str(argument) for argument in arguments]))
