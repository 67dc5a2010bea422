"""Remote files read like local ones, whatever fails on the way."""

import gzip
import io
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.data.documents import Skipped
from flame_accel.data.sources import file_access as access
from flame_accel.data.sources import file_readers as readers
from flame_accel.data.sources.file_readers import END
from tests.helpers.record_files import FORMS, line, members, read, records, zstd


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(access, "sleep", waited.append)
    return waited


def test_a_local_file_that_is_not_there_is_not_waited_for(
    tmp_path: Path, pauses: list[float]
) -> None:
    for name in ("a.jsonl", "a.parquet", "a.txt.gz"):
        what = "No such file or directory"
        assert read(tmp_path / name) == [(Skipped("damaged", str(tmp_path / name), what), END)]
    assert pauses == []


class Server:
    """Files over HTTP; requests of these numbers end in the middle, or in an error."""

    def __init__(
        self, folder: Path, ranges: bool, torn: Sequence[int] = (), refused: Sequence[int] = ()
    ) -> None:
        requests = iter(range(1_000_000))

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                number = next(requests)
                file = folder / self.path.strip("/")
                if not file.exists() or number in refused:
                    self.send_error(503 if file.exists() else 404)
                    return
                data = file.read_bytes()
                asked = self.headers.get("Range") if ranges else None
                start, end = 0, len(data)
                if asked:
                    start, last = map(int, asked.removeprefix("bytes=").split("-"))
                    end = min(last + 1, end)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(end - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                self.end_headers()
                # the reader may have gone away
                with suppress(ConnectionError):
                    self.wfile.write(
                        data[start : (start + end) // 2 if number in torn else end] * body
                    )

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    servers: list[Server] = []
    monkeypatch.setattr(access, "CHUNK_BYTES", 700)
    monkeypatch.setitem(fsspec.config.conf, "http", {"block_size": 900})

    def start(**options: Any) -> str:
        servers.append(Server(tmp_path, **options))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


REMOTE = {
    "a.jsonl": bytes,
    "a.jsonl.gz": members,
    "a.jsonl.zst": zstd,
    "a.json": lambda data: b"[" + data.strip().replace(b"\n", b",") + b"]",
    "a.txt": bytes,
}


def write_remote(folder: Path) -> list[str]:
    texts = [f"{i} " + "xyz"[i % 3] * (i % 50) for i in range(100)]
    data = b"".join(line({"text": text, "more": text[::-1]}) for text in texts)
    for name, form in REMOTE.items():
        (folder / name).write_bytes(form(data))
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=9)
    return [*REMOTE, "a.parquet"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_remote_file_is_read_like_a_local_one(
    tmp_path: Path, serve: Callable[..., str], pauses: list[float], ranges: bool
) -> None:
    url = serve(ranges=ranges)
    for name in write_remote(tmp_path):
        found = read(tmp_path / name, max_bytes=10_000)
        assert read(f"{url}/{name}", max_bytes=10_000) == found
        position = found[len(found) // 2][1]
        assert read(f"{url}/{name}", position, max_bytes=10_000) == found[len(found) // 2 + 1 :]
    assert pauses == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_failing_server_costs_time_only(
    tmp_path: Path, serve: Callable[..., str], pauses: list[float], ranges: bool
) -> None:
    every = 7 if ranges else 5
    torn, refused = (range(first, 10**6, 2 * every) for first in (every - 1, 2 * every - 1))
    url = serve(ranges=ranges, torn=torn, refused=refused)
    for name in write_remote(tmp_path):
        found = read(tmp_path / name, max_bytes=10_000)
        assert read(f"{url}/{name}", max_bytes=10_000) == found, name
    assert pauses


def test_without_ranges_a_torn_answer_is_read_again_up_to_its_place(
    tmp_path: Path, serve: Callable[..., str], pauses: list[float]
) -> None:
    texts = [f"{i} {'x' * 10_000}" for i in range(300)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(line({"text": text}) for text in texts))
    # an open file takes four requests, the last is for its content
    url = serve(ranges=False, torn=[3], refused=[5])
    assert records(f"{url}/a.jsonl", max_bytes=20_000) == texts
    assert pauses == [1, 2]


def test_a_remote_file_that_stays_away_is_one_bad_record(
    serve: Callable[..., str], pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    url = serve(ranges=True) + "/none.jsonl"
    with caplog.at_level(logging.WARNING):
        ((end, position),) = read(url)
    assert (end.why, end.where, position) == ("damaged", url, END)
    assert end.what.startswith("cannot be read, tried 6 times: ")
    assert pauses == [1, 2, 4, 8, 16]
    assert [message.split("; ")[-1] for message in caplog.messages] == [
        f"retry {i + 1} of 5 in {2**i} s" for i in range(5)
    ]


class Flaky:
    """A file system with one file, that fails after a number of bytes each time it is opened."""

    def __init__(self, data: bytes, failures: list[int]) -> None:
        self.data = data
        self.failures = failures

    def open(self, path: str, mode: str) -> Any:
        stream = FlakyFile(self.data)
        stream.left = self.failures.pop(0) if self.failures else len(self.data)
        stream.size = len(self.data)
        return stream


class FlakyFile(io.BytesIO):
    left: int
    size: int

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise TimeoutError("gone quiet")
        return data


@settings(deadline=None, max_examples=40)
@given(
    failures=st.lists(st.integers(0, 400), max_size=5),
    chunk=st.integers(1, 90),
    form=st.sampled_from(["a.jsonl", "a.jsonl.gz"]),
)
def test_nothing_is_lost_or_read_twice_where_reads_fail(
    failures: list[int], chunk: int, form: str
) -> None:
    texts = [f"text {i}" for i in range(20)]
    data = FORMS[form](b"".join(line({"text": text}) for text in texts))
    pauses: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "CHUNK_BYTES", chunk)
        patch.setattr(access, "sleep", pauses.append)
        flaky = Flaky(data, list(failures))
        patch.setattr(
            access,
            "_resolve_or_raise_remote_read_error",
            lambda file: access._RemotePath(flaky, "/flaky"),
        )
        assert records(f"memory://{form}") == texts
    assert len(pauses) <= len(failures)


def test_patience_starts_anew_with_each_read(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    data = line({"text": "a"}) * 40
    flaky = Flaky(data, [len(data) // 10] * 20)
    monkeypatch.setattr(access, "CHUNK_BYTES", len(data) // 40)
    monkeypatch.setattr(
        access,
        "_resolve_or_raise_remote_read_error",
        lambda file: access._RemotePath(flaky, "/flaky"),
    )
    assert records("memory://a.jsonl") == ["a"] * 40
    assert set(pauses) == {1.0}
    assert len(pauses) > access.RETRIES


@pytest.mark.parametrize("form", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_what_was_read_of_a_file_that_goes_away_is_kept(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], form: str
) -> None:
    texts = [f"text {i} {'x' * 5000}" for i in range(40)]
    data = b"".join(line({"text": text}) for text in texts)
    if form == "a.parquet":
        sink = io.BytesIO()
        table = pa.table({"text": texts})
        pq.write_table(table, sink, row_group_size=5, compression="none", use_dictionary=False)
        data = sink.getvalue()
    elif form == "a.jsonl.gz":
        data = gzip.compress(data, 0)
    flaky = Flaky(data, [170_000, *[0] * 9])
    monkeypatch.setattr(access, "CHUNK_BYTES", 50)
    monkeypatch.setattr(readers, "PARQUET_BATCH_ROWS", 5)
    monkeypatch.setattr(
        access,
        "_resolve_or_raise_remote_read_error",
        lambda file: access._RemotePath(flaky, "/flaky"),
    )
    *found, end = records(f"memory://{form}", max_bytes=10_000)
    assert len(found) > 10
    assert found == texts[: len(found)]
    what = "cannot be read, tried 6 times: TimeoutError: gone quiet"
    assert end == Skipped("damaged", f"memory://{form}", what)
    assert pauses == [1, 2, 4, 8, 16]


def test_files_of_any_protocol_are_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/b/a.jsonl.gz", gzip.compress(line({"text": "a"})))
    assert records("memory://b/a.jsonl.gz") == ["a"]
    assert access.stored_size_or_none_if_missing("memory://b/a.jsonl.gz") == memory.size(
        "/b/a.jsonl.gz"
    )


def test_a_forked_worker_reads_remote_files(tmp_path: Path, serve: Callable[..., str]) -> None:
    url = serve(ranges=True)
    (tmp_path / "a.jsonl").write_bytes(line({"text": "a"}) * 50)
    assert records(f"{url}/a.jsonl") == ["a"] * 50
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(records, f"{url}/a.jsonl").result(timeout=20) == ["a"] * 50
