"""A local server with the Hugging Face Hub's HTTP API, for tests that use the real client.

PyPI's hf-local-hub 3.0.0 only starts a Go binary that neither its wheel nor its sdist has, and it
knows no faults; the other packages of this kind are mirrors of the real Hub. So the server is made
of the standard library here. This module starts, stops and looks into it; its parts, from sockets
to repositories, are in local_hub/.

By hand, with whatever client `HF_ENDPOINT` then points there:

    python -m tests.helpers.hub_server --port 8765 --folder hub

The fixture `local_hub` starts one for a test and points the client of the process at it.
"""

import argparse
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.local_hub.api import HubApi
from tests.helpers.local_hub.connections import Listener
from tests.helpers.local_hub.faults import Fault, Faults, RecordedRequest
from tests.helpers.local_hub.repositories import Account, Repositories, Repository
from tests.helpers.local_hub.transfers import LfsStorage

USER = "tester"
ORGANIZATION = "team"
WRITE_TOKEN = "hf_of_the_tester_who_may_write"
READ_TOKEN = "hf_of_the_tester_who_may_read"
STRANGER_TOKEN = "hf_of_a_stranger"
ACCOUNTS = {
    WRITE_TOKEN: Account(USER, True, (ORGANIZATION,)),
    READ_TOKEN: Account(USER, False, (ORGANIZATION,)),
    STRANGER_TOKEN: Account("stranger", True),
}


class HubServer:
    """The local Hub: start, stop, faults, the record of requests, and what it holds.

    Args:
        folder: For the contents of files.
        port: 0 for a free one.
        part_bytes: LFS objects above this are uploaded in parts of this size.
        prints_requests: Prints method, path and status of each request.

    Attributes:
        endpoint: For `HF_ENDPOINT`.
        environment: Variables with which another process uses this server; empty until a client's
            folder is known (`hub_client.client_environment`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        part_bytes: int = 16 * 1024 * 1024,
        prints_requests: bool = False,
    ) -> None:
        self.port = port or _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment: dict[str, str] = {}
        self.faults = Faults()
        self.prints_requests = prints_requests
        self.repositories = Repositories(folder, ACCOUNTS)
        # another name of this machine is another host for a client
        self.storage = LfsStorage(
            self.repositories.contents, f"http://localhost:{self.port}", part_bytes
        )
        self.api = HubApi(self.repositories, self.storage, self.endpoint)
        self._requests: list[RecordedRequest] = []
        self._listener: Listener | None = None

    # ------------------------------------------------------------------------- up and down

    def start(self) -> None:
        """Listens; after `stop` again, at the same port and with all that it held."""
        assert self._listener is None
        self._listener = Listener(self.port, self.api, self.faults, self.record)
        self._listener.start()

    def stop(self) -> None:
        """Closes the port and every open connection."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens at the port within this block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    # ------------------------------------------------------------------------------ faults

    def fail_next(
        self,
        *,
        with_status: int,
        method: str = "",
        path_contains: str = "",
        times: float = 1,
        skip: int = 0,
        retry_after: int | None = None,
        message: str = "",
    ) -> None:
        """The next `times` matching requests, after `skip` of them, are answered with a status."""
        fault = Fault(method, path_contains, times, skip, with_status)
        fault.retry_after, fault.message = retry_after, message
        self.faults.add(fault)

    def break_next(
        self, *, method: str = "", path_contains: str = "", times: float = 1, skip: int = 0
    ) -> None:
        """The connection is cut half-way through the request's body or, without, the answer's."""
        self.faults.add(Fault(method, path_contains, times, skip, breaks_connection=True))

    def delay_next(
        self,
        seconds: float,
        *,
        method: str = "",
        path_contains: str = "",
        times: float = 1,
        skip: int = 0,
    ) -> None:
        """The matching requests are carried out and answered only after so long."""
        self.faults.add(Fault(method, path_contains, times, skip, delay=seconds))

    def heal(self) -> None:
        """Forgets the faults that have not hit."""
        self.faults.clear()

    # ---------------------------------------------------------------------------- requests

    def requests(self, method: str = "", path_contains: str = "") -> list[RecordedRequest]:
        """The requests so far that match, oldest first."""
        wanted = Fault(method, path_contains)
        return [got for got in list(self._requests) if wanted.matches(got.method, got.path)]

    def forget_requests(self) -> None:
        self._requests.clear()

    def record(self, request: RecordedRequest) -> None:
        self._requests.append(request)
        if self.prints_requests:
            # in one write: several threads print
            line = f"{request.method} {request.path} {request.status or 'broken'}\n"
            print(line, end="", flush=True)

    # ------------------------------------------------------------------------ what it holds

    def repository(self, repo_id: str) -> Repository:
        """The model repository of this name, whoever may read it."""
        repository = self.repositories.find("models", repo_id)
        assert repository is not None, f"no repository {repo_id}"
        return repository

    def file_names(self, repo_id: str, revision: str = "main") -> list[str]:
        """Paths of a revision, without the `.gitattributes` that every repository has."""
        files = self.repository(repo_id).find_commit(revision).files
        return [path for path in files if path != ".gitattributes"]

    def read_file(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        repository = self.repository(repo_id)
        return repository.find_file(repository.find_commit(revision), path).contents.read_bytes()

    def add_repository(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, *, private: bool = False
    ) -> Repository:
        """A model repository that is there before any client comes; its files are regular ones."""
        contents = self.repositories.contents
        repository = self.repositories.create("models", repo_id, private=private, author=USER)
        if files:
            added = {path: contents.add_regular(value) for path, value in files.items()}
            repository.change_files("main", added, title="files", author=USER)
        return repository


def _free_port() -> int:
    """A port where nobody listens, of those that no connection that goes out is given.

    So it can be listened at again after the server was down.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port")


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.hub_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--folder", type=Path, help="contents of files; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        server = HubServer(
            options.folder or Path(temporary), port=options.port, prints_requests=True
        )
        server.start()
        print(f"export HF_ENDPOINT={server.endpoint} HF_TOKEN={WRITE_TOKEN} HF_HUB_DISABLE_XET=1")
        print(f"Repositories of {USER} and {ORGANIZATION}; they last until this server ends.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            server.stop()


if __name__ == "__main__":
    main()
