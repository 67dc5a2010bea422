"""Records of one file: the same from every place on, whatever is wrong with it or with the way."""

import gzip
import io
import json
import logging
import multiprocessing
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
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

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Skipped
from flame_accel.data.sources import file_access as access
from flame_accel.data.sources import file_readers as readers
from flame_accel.data.sources import files
from flame_accel.data.sources.file_readers import END, read_records

MAX_BYTES = 60
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\u00e9"}]
MARK = b"\xef\xbb\xbf"


def read(
    file: str | Path, place: int = 0, *, column: str | None = None, max_bytes: int = MAX_BYTES
) -> list[tuple[Any, int]]:
    return list(read_records(str(file), place, text_column=column, max_bytes=max_bytes))


def records(file: str | Path, **options: Any) -> list[Any]:
    return [record for record, _ in read(file, **options)]


def without_where(found: list[tuple[Any, int]]) -> list[Any]:
    """Lines have no numbers where reading did not begin at the first."""
    return [
        (record._replace(where="") if isinstance(record, Skipped) else record, place)
        for record, place in found
    ]


def check_places(file: str | Path, **options: Any) -> list[tuple[Any, int]]:
    found = read(file, **options)
    for i, (_, place) in enumerate(found):
        assert without_where(read(file, place, **options)) == without_where(found[i + 1 :])
    return found


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.json": bytes,
    "a.ndjson": bytes,
    "a.jsonl.gz": members,
    "a.jsonl.zst": zstd,
}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUE = TEXT | st.none() | st.just(CHAT) | st.integers() | st.just("\ud800") | st.just("x" * 61)
RECORD = VALUE.map(lambda value: {"id": 1, "text": value}) | st.just({"title": "a"})
LINE = st.one_of(
    RECORD.map(line),
    RECORD.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")).map(
        lambda data: data + b"\r\n"
    ),
    st.sampled_from([b"\n", b" \t\r\n", b"[1, 2\n", b'{"text": "\xff"}\n', b"x" * 200 + b"\n"]),
)
# the first record decides what form the file is of
LINES = st.lists(LINE, max_size=12).map(lambda lines: b"".join([line({"text": "a"}), *lines]))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(access, "sleep", waited.append)
    return waited


# places


@settings(deadline=None, max_examples=60)
@given(data=LINES, form=st.sampled_from(sorted(FORMS)), chunk=st.integers(1, 90), cut=st.booleans())
def test_reading_on_from_any_place_gives_the_rest(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, form: str, chunk: int, cut: bool
) -> None:
    file = tmp_path_factory.mktemp("lines") / form
    data = data[:-1] if cut else data
    file.write_bytes(FORMS[form](data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "CHUNK_BYTES", chunk)
        found = check_places(file)
    assert len(found) == sum(bool(part.strip()) for part in data.split(b"\n"))
    assert found == read(file), "pieces matter"


@settings(deadline=None, max_examples=30)
@given(values=st.lists(VALUE, max_size=8))
def test_elements_of_an_array_have_places(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any]
) -> None:
    file = tmp_path_factory.mktemp("array") / "a.json"
    array = [{"text": "a"}, *({"text": value} for value in values), 5, {"title": "b"}]
    file.write_text(json.dumps(array))
    found = check_places(file)
    assert [place for _, place in found] == list(range(1, len(array) + 1))


@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(TEXT | st.none() | st.just("x" * 61), min_size=1, max_size=20),
    group=st.integers(1, 8),
    batch=st.integers(1, 8),
)
def test_rows_of_parquet_have_places(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], group: int, batch: int
) -> None:
    file = tmp_path_factory.mktemp("rows") / "a.parquet"
    table = pa.table({"id": range(len(values)), "text": pa.array(values, "string")})
    pq.write_table(table, file, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PARQUET_BATCH_ROWS", batch)
        found = check_places(file)
    assert [place for _, place in found] == list(range(1, len(values) + 1))
    assert [r for r, _ in found if isinstance(r, str)] == [v for v in values if v and len(v) < 61]


def test_what_is_before_a_place_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(i) * 50 for i in range(8)]}), file, row_group_size=2)
    data = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).dictionary_page_offset
    data[4:start] = bytes(start - 4)
    file.write_bytes(data)
    assert records(file, place=2) == [str(i) * 50 for i in range(2, 8)]
    lines = tmp_path / "a.jsonl.zst"
    lines.write_bytes(zstd(b"no JSON\n" * 9 + line({"text": "a"})))
    monkeypatch.setattr(readers, "parse", lambda data, where: json.loads(data))
    assert records(lines, place=72) == ["a"]


def test_text_files_are_one_record(tmp_path: Path) -> None:
    text = "\ufeffa\r\nb\u00e9\n"
    for name, form in {"a.txt": bytes, "a.py.gz": members, "a.md.zst": zstd}.items():
        (tmp_path / name).write_bytes(form(text.encode()))
        assert check_places(tmp_path / name) == [(text, 1)]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a/b.parquet", files.PARQUET, None),
        ("a.b.jsonl", files.JSON, None),
        ("a.NDJSON.zst", files.JSON, "zstd"),
        ("a.json.gz", files.JSON, "gzip"),
        ("a.jsonl.xz", files.TEXT, None),
        ("parquet", files.TEXT, None),
        ("hf://datasets/a/b@1.json/c", files.TEXT, None),
        ("https://a.b/c.jsonl.gz?download=true.txt#x", files.JSON, "gzip"),
        ("a?b.jsonl", files.JSON, None),
    ],
)
def test_names_tell_what_files_are(name: str, kind: str, compression: str | None) -> None:
    assert (files.file_format(name), files.file_compression(name)) == (kind, compression)


# records


BAD_LINES = {
    "not JSON": (b'{"text": b}', "damaged", r"not JSON: Expecting value at column 10"),
    "nested": (b"[" * 50, "damaged", "not JSON"),
    "number": (b'{"a": ' + b"9" * 5000 + b"}", "damaged", "no JSON that can be read: .*digits"),
    "not an object": (b'"b"', "damaged", "a record must be an object with named columns, not str"),
    "not UTF-8": (b'{"text": "\xff"}', "damaged", r"not UTF-8 at byte 10 \(b'\\xff'\)"),
    "surrogate in bytes": (b'{"text": "\xed\xa0\x80"}', "damaged", "not UTF-8 at byte 10"),
    "half a pair": (b'{"text": "ab\\ud800"}', "damaged", "half a surrogate pair at character 2"),
    "no column": (b'{"title": 1}', "damaged", "no column 'text' or .*; there are: title"),
    "a number": (b'{"text": 5}', "damaged", "column 'text' holds int, not text"),
    "null": (b'{"text": null}', "empty", "no text in column 'text'"),
    "empty": (b'{"text": ""}', "empty", "no text"),
    "no messages": (b'{"messages": []}', "empty", "no text in column 'messages'"),
    "long": (b'{"text": "' + b"x" * 9000 + b'"}', "damaged", r"9012 bytes, more than .* = 6000"),
    "strings": (b'{"messages": ["a"]}', "damaged", "no conversation: str instead of an object"),
    "other keys": (b'{"messages": [{"from": 1}]}', "damaged", "no role and no content, but from"),
    "content": (b'{"messages": [{"role": "user", "content": 5}]}', "damaged", "content of type in"),
    "role": (b'{"messages": [{"role": 5, "content": ""}]}', "damaged", "role of type int"),
    "half in chat": (
        b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
        "damaged",
        "column 'messages' holds half a surrogate pair$",
    ),
}


@pytest.mark.parametrize(("data", "why", "what"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_passed_over_and_named(
    tmp_path: Path, data: bytes, why: str, what: str
) -> None:
    file = tmp_path / "a.jsonl"
    good = line({"text": "a"})
    file.write_bytes(good + b"\n" + data + b"\n" + good)
    first, bad, last = records(file, max_bytes=6000)
    assert first == last == "a"
    assert (bad.why, bad.where) == (why, f"{file}, line 3")
    with pytest.raises(AssertionError, match=what):
        raise AssertionError(bad.what)
    bad, _ = records(file, place=len(good), max_bytes=6000)
    assert bad.where == f"{file}, byte {len(good) + 1}"


def test_the_first_record_decides_the_form_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for record, what in {
        '{"title": 1, "body": 2}': r"line 2: no column 'text' .*: title, body\n.*--tr",
        '{"text": 5}': "line 2: column 'text' holds int, not text",
        '{"text": [5]}': "line 2: column 'text' holds a list that is no conversation",
    }.items():
        file.write_text(f"\n{record}\n")
        with pytest.raises(UserError, match=what):
            read(file)
    file.write_text('[{"title": "a"}]')
    with pytest.raises(UserError, match=r"element 0: .* there are: title"):
        read(file)
    for skipped in ("5", '{"text": null}', '{"text": "\\ud800"}', "{"):
        file.write_text(f'{skipped}\n{{"text": "a"}}\n')
        assert records(file)[1] == "a"


def test_columns_of_parquet_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    chats = [CHAT, None, [], [{"role": "user", "content": None}]]
    pq.write_table(pa.table({"id": range(4), "messages": chats, "text.b": list("wxyz")}), file)
    chat, *empty, last = records(file, max_bytes=500)
    assert (chat, last) == (CHAT, chats[3])
    assert [skipped.why for skipped in empty] == ["empty", "empty"]
    assert records(file, column="text.b") == list("wxyz")
    with pytest.raises(UserError, match="row 0: column 'id' holds int"):
        read(file, column="id")
    with pytest.raises(UserError, match=r"a\.parquet: no column 'x'; there are: id, messages, te"):
        read(file, column="x")
    assert [r.why for r in records(file, column="id", place=2)] == ["damaged"] * 2


def test_bytes_that_are_no_text_in_parquet_cost_their_row_only(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    column = pa.array([b"a", b"b\xff", b"c"], "binary").cast("string", safe=False)
    pq.write_table(pa.table({"text": column}), file)
    first, bad, last = records(file)
    assert (first, last) == ("a", "c")
    assert bad == Skipped("damaged", f"{file}, row 1", "not UTF-8 at byte 1 (b'\\xff')")


def test_the_columns_are_text_then_content_then_messages(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    everything = {"messages": CHAT, "content": "c", "text": "t", "mine": "m"}
    file.write_bytes(line(everything))
    assert records(file, column="mine", max_bytes=999) == ["m"]
    for name in ("text", "content", "messages"):
        file.write_bytes(line(everything))
        assert records(file, max_bytes=999) == [everything.pop(name)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        (tmp_path / name).write_bytes(form(MARK + line({"text": "a"}) + line({"text": "b"})))
        assert [r for r, _ in check_places(tmp_path / name)] == ["a", "b"]
    (tmp_path / "a.json").write_bytes(MARK + b'[{"text": "a"}]')
    assert records(tmp_path / "a.json") == ["a"]


@pytest.mark.covers_option("training.max_document_bytes")
def test_a_long_line_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(access, "CHUNK_BYTES", 1 << 16)
    good = line({"text": "a"})
    contents = {"a.jsonl.zst": zstd(good + b"x" * 30_000_000 + b"\n" + good)}
    contents["a.txt"] = b"x" * 30_000_000
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    tracemalloc.start()
    first, long, last = records(tmp_path / "a.jsonl.zst", max_bytes=1000)
    (text,) = records(tmp_path / "a.txt", max_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first == last == "a"
    assert long.what == text.what
    assert long.what == "30000000 bytes, more than training.max_document_bytes = 1000"
    assert peak < 2_000_000


def test_text_of_the_greatest_length_is_kept(tmp_path: Path) -> None:
    text = "\u00e9" * 30
    values = [text, text + "x"]
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps([{"text": value} for value in values]))
    for name in ("a.parquet", "a.json"):
        kept, bad = records(tmp_path / name, max_bytes=60)
        assert (kept, bad.what[:8]) == (text, "61 bytes")
    (tmp_path / "a.txt").write_text(values[0])
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(values[1].encode()))
    assert records(tmp_path / "a.txt") == [text]
    assert records(tmp_path / "b.txt.gz")[0].what.startswith("61 bytes")


# damaged files


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=40), min_size=3, max_size=30),
    share=st.floats(0.05, 0.99),
    chunk=st.sampled_from([1, 100, 1 << 20]),
)
def test_all_that_a_torn_file_still_holds_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], share: float, chunk: int
) -> None:
    file = tmp_path_factory.mktemp("torn") / "a.jsonl.gz"
    packed = gzip.compress(b"".join(line({"text": text}) for text in texts))
    torn = packed[: int(len(packed) * share)]
    file.write_bytes(torn)
    whole = zlib.decompressobj(31).decompress(torn).count(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "CHUNK_BYTES", chunk)
        *found, (end, place) = check_places(file)
    assert [record for record, _ in found] == texts[:whole]
    what = "damaged gzip file: Truncated compressed stream"
    assert (end, place) == (Skipped("damaged", str(file), what), END)


def test_damage_ends_the_file_with_one_record(tmp_path: Path) -> None:
    lines = line({"text": "a"}) * 9
    contents = {
        "no.jsonl.gz": (lines, "damaged gzip file: zlib inflate failed: incorrect header check"),
        "flipped.jsonl.zst": (zstd(lines)[:-9] + b"12345", "damaged zstd file: .*"),
        "torn.json": (b'[{"text": "a"}, {"te', "not JSON: Unterminated string.* at column 18"),
        "not.parquet": (b"PAR1 not quite", "not a Parquet file: .*"),
        "bytes.txt": (b"abc\xff", r"not UTF-8 at byte 3 \(b'\\xff'\)"),
    }
    for name, (data, what) in contents.items():
        file = tmp_path / name
        file.write_bytes(data)
        *_, (end, _) = found = check_places(file)
        assert (end.why, end.where, len(found)) == ("damaged", str(file), 1), name
        with pytest.raises(AssertionError, match=f"^{what}$"):
            raise AssertionError(end.what)


def test_a_torn_page_of_parquet_keeps_the_rows_before_it(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i} {'x' * 20}" for i in range(600)]})
    pq.write_table(table, file, row_group_size=300, compression="zstd", use_dictionary=False)
    data = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 200] = bytes(200)
    file.write_bytes(data)
    found = read(file)
    assert [record for record, _ in found[:-1]] == table.column("text").to_pylist()[:300]
    assert (found[-1][0].why, found[-1][0].where, found[-1][1]) == ("damaged", str(file), END)
    assert read(file, 299) == found[299:]


def test_a_local_file_that_is_not_there_is_not_waited_for(
    tmp_path: Path, pauses: list[float]
) -> None:
    for name in ("a.jsonl", "a.parquet", "a.txt.gz"):
        what = "No such file or directory"
        assert read(tmp_path / name) == [(Skipped("damaged", str(tmp_path / name), what), END)]
    assert pauses == []


# remote files


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
        place = found[len(found) // 2][1]
        assert read(f"{url}/{name}", place, max_bytes=10_000) == found[len(found) // 2 + 1 :]
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
        ((end, place),) = read(url)
    assert (end.why, end.where, place) == ("damaged", url, END)
    assert end.what.startswith("cannot be read, tried 6 times: ")
    assert pauses == [1, 2, 4, 8, 16]
    assert [message.split("; ")[-1] for message in caplog.messages] == [
        f"retry {i + 1} of 5 in {2**i} s" for i in range(5)
    ]


class Flaky:
    """A file system with one file, that fails after so many bytes each time it is opened."""

    def __init__(self, data: bytes, extended_timeout: list[int]) -> None:
        self.data = data
        self.extended_timeout = extended_timeout

    def open(self, path: str, mode: str) -> Any:
        stream = FlakyFile(self.data)
        stream.left = self.extended_timeout.pop(0) if self.extended_timeout else len(self.data)
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
    extended_timeout=st.lists(st.integers(0, 400), max_size=5),
    chunk=st.integers(1, 90),
    form=st.sampled_from(["a.jsonl", "a.jsonl.gz"]),
)
def test_nothing_is_lost_or_read_twice_where_reads_fail(
    extended_timeout: list[int], chunk: int, form: str
) -> None:
    texts = [f"text {i}" for i in range(20)]
    data = FORMS[form](b"".join(line({"text": text}) for text in texts))
    pauses: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "CHUNK_BYTES", chunk)
        patch.setattr(access, "sleep", pauses.append)
        flaky = Flaky(data, list(extended_timeout))
        patch.setattr(access, "_file_system", lambda file: (flaky, "/flaky"))
        assert records(f"memory://{form}") == texts
    assert len(pauses) <= len(extended_timeout)


def test_patience_starts_anew_with_each_read(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    data = line({"text": "a"}) * 40
    flaky = Flaky(data, [len(data) // 10] * 20)
    monkeypatch.setattr(access, "CHUNK_BYTES", len(data) // 40)
    monkeypatch.setattr(access, "_file_system", lambda file: (flaky, "/flaky"))
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
    monkeypatch.setattr(access, "_file_system", lambda file: (flaky, "/flaky"))
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
    assert access.size_of("memory://b/a.jsonl.gz") == memory.size("/b/a.jsonl.gz")


def test_a_forked_worker_reads_remote_files(tmp_path: Path, serve: Callable[..., str]) -> None:
    url = serve(ranges=True)
    (tmp_path / "a.jsonl").write_bytes(line({"text": "a"}) * 50)
    assert records(f"{url}/a.jsonl") == ["a"] * 50
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(records, [f"{url}/a.jsonl"]).get(timeout=20) == ["a"] * 50
