"""Records of one file: the same from every position, whatever is wrong with the file."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config.errors import UserError
from flame_accel.data.documents import Skipped
from flame_accel.data.sources import file_access as access
from flame_accel.data.sources import file_readers as readers
from flame_accel.data.sources.file_readers import END
from tests.helpers.record_files import CHAT, FORMS, line, members, read, records, zstd

MARK = b"\xef\xbb\xbf"


def without_where(found: list[tuple[Any, int]]) -> list[Any]:
    """Lines have no numbers where reading did not begin at the first."""
    return [
        (record._replace(where="") if isinstance(record, Skipped) else record, position)
        for record, position in found
    ]


def check_positions(file: str | Path, **options: Any) -> list[tuple[Any, int]]:
    found = read(file, **options)
    for i, (_, position) in enumerate(found):
        assert without_where(read(file, position, **options)) == without_where(found[i + 1 :])
    return found


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

LINES = st.lists(LINE, max_size=12).map(lambda lines: b"".join([line({"text": "a"}), *lines]))


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
        found = check_positions(file)
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
    found = check_positions(file)
    assert [position for _, position in found] == list(range(1, len(array) + 1))


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
        found = check_positions(file)
    assert [position for _, position in found] == list(range(1, len(values) + 1))
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
    assert records(file, position=2) == [str(i) * 50 for i in range(2, 8)]
    lines = tmp_path / "a.jsonl.zst"
    lines.write_bytes(zstd(b"no JSON\n" * 9 + line({"text": "a"})))
    monkeypatch.setattr(readers, "parse_json_or_skipped", lambda data, where: json.loads(data))
    assert records(lines, position=72) == ["a"]


def test_text_files_are_one_record(tmp_path: Path) -> None:
    text = "\ufeffa\r\nb\u00e9\n"
    for name, form in {"a.txt": bytes, "a.py.gz": members, "a.md.zst": zstd}.items():
        (tmp_path / name).write_bytes(form(text.encode()))
        assert check_positions(tmp_path / name) == [(text, 1)]


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
    assert [r.why for r in records(file, column="id", position=2)] == ["damaged"] * 2


def test_bytes_that_are_no_text_in_parquet_cost_their_row_only(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    column = pa.array([b"a", b"b\xff", b"c"], "binary").cast("string", safe=False)
    pq.write_table(pa.table({"text": column}), file)
    first, bad, last = records(file)
    assert (first, last) == ("a", "c")
    assert bad == Skipped("damaged", f"{file}, row 1", "not UTF-8 at byte 1 (b'\\xff')")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        (tmp_path / name).write_bytes(form(MARK + line({"text": "a"}) + line({"text": "b"})))
        assert [r for r, _ in check_positions(tmp_path / name)] == ["a", "b"]
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
        *found, (end, position) = check_positions(file)
    assert [record for record, _ in found] == texts[:whole]
    what = "damaged gzip file: Truncated compressed stream"
    assert (end, position) == (Skipped("damaged", str(file), what), END)


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
        *_, (end, _) = found = check_positions(file)
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
