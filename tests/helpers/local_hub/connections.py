"""Sockets of the local Hub: reads requests, lets faults hit, writes answers."""

import re
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.helpers.local_hub.api import HubApi
from tests.helpers.local_hub.faults import Fault, Faults, RecordedRequest, refuse
from tests.helpers.local_hub.messages import Answer, Request
from tests.helpers.local_hub.refusals import HubError

CHUNK_BYTES = 64 * 1024


class Listener(ThreadingHTTPServer):
    """A listening socket and the connections that came of it, each with a thread.

    Args:
        port: Of this machine.
        api: Answers requests that no fault keeps from it.
        faults: What hits requests.
        record: Called with each request, before its answer is sent.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        port: int,
        api: HubApi,
        faults: Faults,
        record: Callable[[RecordedRequest], None],
    ) -> None:
        self.api, self.faults, self.record = api, faults, record
        self.stopped = threading.Event()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Connection)

    def start(self) -> None:
        # the default looks for the end twice a second
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Closes the port and the connections."""
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            cut(connection, at_once=True)

    def process_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        assert isinstance(request, socket.socket)
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        assert isinstance(request, socket.socket)
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Tells of errors of the server; a client that goes away is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def handle_any(self) -> None:
        """One request, from reading to answer."""
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = _Body(self.rfile, headers)
        fault = self.server.faults.take(self.command, url.path) or Fault()
        try:
            if fault.delay:
                self.server.stopped.wait(fault.delay)
            if fault.breaks_connection and body.expected_bytes != 0:
                body.read_half()
                self._record(url.path, body, None)
                self._break_off(at_once=True)
                return
            if fault.with_status is None:
                query = parse_qs(url.query, keep_blank_values=True)
                request = Request(self.command, url.path, query, headers, iter(body))
                answer = self._carry_out(request)
            else:
                answer = refuse(fault)
            for _ in body:
                # the next request of this connection begins after the body
                pass
        except ConnectionError:
            self._record(url.path, body, None)
            raise
        sent = pick_range(answer, headers.get("range"))
        self._record(url.path, body, None if fault.breaks_connection else sent.status)
        self._send(sent, fault.breaks_connection)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _carry_out(self, request: Request) -> Answer:
        try:
            return self.server.api.answer(request)
        except ConnectionError:
            raise
        except Exception:
            # must not look like a fault that a test asked for, nor be tried again
            traceback.print_exc()
            return Answer.error(HubError(501, "the local Hub cannot do this"))

    def _record(self, path: str, body: "_Body", status: int | None) -> None:
        authorized = "authorization" in self.headers
        received = body.received_bytes
        self.server.record(RecordedRequest(self.command, path, authorized, received, status))

    def _send(self, sent: "Sent", breaks: bool) -> None:
        """Writes an answer, or half of it."""
        if breaks and (sent.count == 0 or self.command == "HEAD"):
            self._break_off(at_once=True)
            return
        self.send_response(sent.status)
        for name, value in sent.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(sent.count))
        self.end_headers()
        if self.command != "HEAD":
            for chunk in read_span(
                sent.body, sent.start, sent.count // 2 if breaks else sent.count
            ):
                self.wfile.write(chunk)
        if breaks:
            # what is written arrives
            self._break_off(at_once=False)

    def _break_off(self, at_once: bool) -> None:
        self.close_connection = True
        cut(self.connection, at_once)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: requests are recorded, without their headers."""


class _Body:
    """The body of a request, read as it comes: of a known length, or in HTTP's chunks."""

    def __init__(self, stream: BufferedIOBase, headers: Mapping[str, str]) -> None:
        self._stream = stream
        chunked = "chunked" in headers.get("transfer-encoding", "")
        self.expected_bytes = None if chunked else int(headers.get("content-length", 0))
        self.received_bytes = 0
        self._rest = self._read_chunked() if chunked else self._read_known_length()

    def __iter__(self) -> Iterator[bytes]:
        return self._rest

    def read_half(self) -> None:
        """Reads half of a body of a known length, and the first chunk of another."""
        half = 1 if self.expected_bytes is None else self.expected_bytes // 2
        while self.received_bytes < half:
            if not next(self._rest, b""):
                return

    def _read_known_length(self) -> Iterator[bytes]:
        assert self.expected_bytes is not None
        while self.received_bytes < self.expected_bytes:
            yield self._read(min(CHUNK_BYTES, self.expected_bytes - self.received_bytes))

    def _read_chunked(self) -> Iterator[bytes]:
        while size := int(self._read_line().split(b";")[0], 16):
            yield self._read(size)
            self._read_line()
        while self._read_line().strip():
            pass

    def _read_line(self) -> bytes:
        line = self._stream.readline()
        if not line:
            raise ConnectionError("the client went away")
        return line

    def _read(self, count: int) -> bytes:
        chunk = self._stream.read(count)
        self.received_bytes += len(chunk)
        if len(chunk) < count:
            raise ConnectionError("the client went away")
        return chunk


class Sent(NamedTuple):
    """An answer with the span of its body that is sent: `count` bytes from `start`."""

    status: int
    headers: dict[str, str]
    body: bytes | Path
    start: int
    count: int


def pick_range(answer: Answer, wanted: str | None) -> Sent:
    """The span of an answer's body that a `Range` header asks for."""
    body = answer.body
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if found is None or answer.status != 200:
        return Sent(answer.status, answer.headers, body, 0, size)
    first, last = found.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        headers = {"Content-Range": f"bytes */{size}"}
        return Sent(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers, b"", 0, 0)
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return Sent(HTTPStatus.PARTIAL_CONTENT, headers, body, start, end - start)


def read_span(body: bytes | Path, start: int, count: int) -> Iterator[bytes]:
    """Bytes of a body in memory or in a file."""
    if isinstance(body, bytes):
        yield body[start : start + count]
        return
    with body.open("rb") as file:
        file.seek(start)
        while count > 0 and (chunk := file.read(min(CHUNK_BYTES, count))):
            count -= len(chunk)
            yield chunk


def cut(connection: socket.socket, at_once: bool) -> None:
    """Ends a connection; `at_once` with a reset, which loses what is still on its way."""
    try:
        if at_once:
            without_waiting = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, without_waiting)
        # wakes the thread that reads from it, which then closes it
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # the client was quicker
        return
