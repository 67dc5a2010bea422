"""The big laws of the data stream, from files to micro-batches, for all ways to read and to pack.

What a step holds depends on the data, the seed and the rows of a step alone: not on ranks, worker
processes, micro-batches and restarts. Over an epoch every token is a target once. What was used up
and what was passed over is together what was read.
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.config.errors import UserError
from flame_accel.data.cache.cache_writer import CacheOrigin, write_cache
from flame_accel.data.cursors import LaneCursor
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.from_options import (
    RunData,
    build_batches,
    build_evaluation_batches,
    build_stream,
    open_data,
)
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.stream_state import merge_states
from flame_accel.data.loading.workers import LoaderOptions, Share, Stream, start_workers
from flame_accel.data.sources.opening import open_source
from flame_accel.data.sources.options import DatasetOptions
from flame_accel.data.sources.table import Table
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import load_tokenizer, tokenizer_identity

BYTE = load_tokenizer("byte", False)
EOS = 256
ROWS = 16
"""Of a step."""
STEPS = 200
ONE, THREE = "{a}", "{a},{b},{c}"
SHARES = (5.0, 3.0, 2.0)
WITH_PROCESSES = {"one table", "one stream, best fit", "three tables, best fit", "three streams"}
BEST_FIT = {"packing": "best_fit", "varlen": True, "context_len": 12}
KINDS: dict[str, dict[str, Any]] = {
    "one table": {"dataset": ONE},
    "one table, best fit": {"dataset": ONE, **BEST_FIT},
    "one stream": {"dataset": ONE, "streaming": True, "varlen": True, "context_len": 12},
    "one stream, best fit": {"dataset": ONE, "streaming": True, **BEST_FIT},
    "three tables": {"dataset": THREE, "data_probs": SHARES, "varlen": True, "context_len": 12},
    "three tables, best fit": {"dataset": THREE, "data_probs": SHARES, **BEST_FIT},
    "three streams": {"dataset": THREE, "data_probs": SHARES, "streaming": True},
    "three streams, best fit": {
        "dataset": THREE,
        "data_probs": SHARES,
        "streaming": True,
        **BEST_FIT,
    },
}


class Case(NamedTuple):
    """A kind of run, and what it draws when nothing disturbs it."""

    training: TrainingConfig
    data: RunData
    steps: np.ndarray
    """What `rows_of` says, of each."""
    states: list[dict[str, Any]]
    """Merged, before each step and behind the last."""


def texts_of(source: str, count: int) -> list[str]:
    """Texts of which no two are alike; of some there is little or nothing."""
    texts = [f"{source}{i} " + "\u00e9abc def "[: i * 7 % 11] * (i % 7) for i in range(count)]
    texts[5] = ""
    return texts


TEXTS = {"a": texts_of("a", 60), "b": texts_of("b", 50), "c": texts_of("c", 40)}


def write_json_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_cached(dataset: Path, folder: Path) -> str:
    """What `prepare` makes of a dataset."""
    table = open_source(DatasetOptions(dataset=str(dataset)))
    assert isinstance(table, Table)
    recipe = CacheOrigin(
        tokenizer_identity=tokenizer_identity(BYTE), vocabulary_size=258, add_bos=False, source={}
    )
    write_cache(table, Encoder(BYTE, add_bos=False), folder, recipe)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three JSON files; a Parquet file for every fourth lane; a token cache."""
    root = tmp_path_factory.mktemp("data")
    texts = TEXTS["a"]
    for i, name in enumerate(("0.jsonl", "1.jsonl.gz", "2.jsonl")):
        write_json_lines(root / "a" / name, texts[20 * i : 20 * i + 20])
    (root / "b").mkdir()
    for i in range(4):
        column = [text or None for text in TEXTS["b"][i::4]]
        pq.write_table(pa.table({"content": column}), root / "b" / f"{i}.parquet")
    write_json_lines(root / "c.jsonl", TEXTS["c"])
    cached = write_cached(root / "c.jsonl", root / "c")
    return {"a": str(root / "a"), "b": str(root / "b"), "c": cached}


def open_run(**options: Any) -> tuple[TrainingConfig, RunData]:
    training = TrainingConfig(
        batch_size=ROWS, num_workers=0, pin_memory=False, **{"shuffle_block": 24, **options}
    )
    return training, open_data(training, EvaluationConfig(), BYTE)


def rows_of(step: list, micro_batch_size: int, seq_len: int) -> np.ndarray:
    """Tokens, labels and starts of segments of a rank's rows, int64 [rows, 3, T]."""
    parts = []
    for batch in step:
        starts = np.zeros(micro_batch_size * seq_len, dtype=np.int64)
        starts[batch["cu_seqlens"][:-1].numpy() if "cu_seqlens" in batch else ()] = 1
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        packed = (1, micro_batch_size * seq_len)
        assert ids.shape == (packed if "cu_seqlens" in batch else (micro_batch_size, seq_len))
        assert batch["num_targets"] == (labels[:, 1:] != IGNORED_LABEL).sum()
        fields = [field.reshape(micro_batch_size, seq_len) for field in (ids, labels, starts)]
        parts.append(np.stack(fields, axis=1))
    return np.concatenate(parts)


def play(
    training: TrainingConfig,
    data: RunData,
    steps: int,
    *,
    world_size: int = 1,
    accumulation: int = 1,
    num_workers: int = 0,
    state: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of all ranks in the order of the lanes, and the state behind them, through JSON."""
    size = ROWS // world_size // accumulation
    training = replace(
        training,
        batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_workers=num_workers,
    )
    ranks = [
        build_batches(training, data, rank=rank, world_size=world_size, state=state)
        for rank in range(world_size)
    ]
    drawn = [
        [rows_of(step, size, training.seq_len) for step in islice(batches, steps)]
        for batches in ranks
    ]
    merged = merge_states([batches.state_dict() for batches in reversed(ranks)])
    joined = [np.concatenate(parts) for parts in zip(*drawn, strict=True)]
    return np.stack(joined), json.loads(json.dumps(merged))


@pytest.fixture(scope="module")
def cases(files: dict[str, str]) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case(kind: str) -> Case:
        if kind not in made:
            options = KINDS[kind]
            training, data = open_run(
                seq_len=16, **{**options, "dataset": options["dataset"].format(**files)}
            )
            batches = build_batches(training, data, rank=0, world_size=1)
            states, steps = [merge_states([batches.state_dict()])], []
            for step in islice(batches, STEPS):
                steps.append(rows_of(step, ROWS, 16))
                states.append(json.loads(json.dumps(merge_states([batches.state_dict()]))))
            made[kind] = Case(training, data, np.stack(steps), states)
        return made[kind]

    return case


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("kind", KINDS)
def test_steps_do_not_depend_on_ranks_and_workers_and_micro_batches(
    cases: Callable[[str], Case], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are packed once for all splits into micro-batches, which are made of what workers give.

    Processes take long to start: of each pair of kinds that read alike only one gets some.
    """
    case = cases(kind)
    given: dict[tuple[range, int], list[Share | UserError]] = {}

    def start_once(
        stream: Stream, lanes: range, cursors: Sequence[LaneCursor], options: LoaderOptions
    ) -> Iterator[Share | UserError]:
        key = lanes, options.num_workers
        if key not in given:
            shares = start_workers(stream, lanes, cursors, options)
            given[key] = [*islice(shares, STEPS * max(1, options.workers_for(lanes)))]
        return iter(given[key])

    monkeypatch.setattr("flame_accel.data.loading.step_batches.start_workers", start_once)
    for world_size in (1, 2, 4):
        for num_workers in (0, 1, 3) if kind in WITH_PROCESSES else (0,):
            for accumulation in (1, 2, 4):
                split = {
                    "world_size": world_size,
                    "accumulation": accumulation,
                    "num_workers": num_workers,
                }
                found, state = play(case.training, case.data, STEPS, **split)
                assert np.array_equal(found, case.steps), split
                # workers have read further than this
                assert state == case.states[-1]


def epochs_of(state: Mapping[str, Any]) -> list[list[int]]:
    """Complete passes of each lane over each source."""
    return [[source[0] for source in sources] for _, _, _, *sources in state["cursors"]]


SPLITS = st.sampled_from([(world, part) for world in (1, 2, 4) for part in (1, 2, 4)])


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_anywhere_and_twice_changes_nothing(
    cases: Callable[[str], Case], kind: str
) -> None:
    """By induction: from the state behind any step the next ones follow, and their states.

    Data are read through many times in so many steps.
    """
    case = cases(kind)
    assert min(chain(*epochs_of(case.states[-1]))) > 1

    @given(st.integers(0, STEPS - 20), st.integers(1, 9), st.integers(1, 9), SPLITS, SPLITS)
    @settings(max_examples=6, deadline=None)
    def check(start: int, first: int, second: int, here: tuple, there: tuple) -> None:
        state = case.states[start]
        for count, (world_size, accumulation) in ((first, here), (second, there)):
            found, state = play(
                case.training,
                case.data,
                count,
                world_size=world_size,
                accumulation=accumulation,
                state=state,
            )
            assert np.array_equal(found, case.steps[start : start + count])
            start += count
            assert state == case.states[start]

    check()


def documents_of(stream: Stream, lane: int) -> Iterator[tuple[int, list[int]]]:
    """Epoch and tokens of the documents that the lane of a single source reads."""
    (reader,) = stream.readers(lane, stream.beginning, lambda skipped: None)
    while True:
        tokens = reader.peek().tokens.tolist()
        yield reader.cursor.place[0], tokens
        reader.advance()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("one")])
def test_an_epoch_has_every_token_as_a_target_once(cases: Callable[[str], Case], kind: str) -> None:
    """Each lane's targets are the tokens of its documents but the first of each (without varlen of
    the lane), and the documents of all lanes in the first epoch are those of the data.
    """
    case = cases(kind)
    stream = build_stream(case.training, case.data, num_lanes=ROWS)
    in_epoch: Counter[tuple[int, ...]] = Counter()
    for lane in range(ROWS):
        labels = case.steps[:, lane, 1]
        # with best fit between two windows, else anywhere
        places = [state["cursors"][lane] for state in case.states]
        end = max(i for i, (_, _, row, _) in enumerate(places) if row == 0)
        found = labels[:end][labels[:end] != IGNORED_LABEL].tolist()
        documents = documents_of(stream, lane)
        # the last one may be under way
        read = [*islice(documents, places[end][3][-4] + 1)]
        assert read[-1][0] > 1
        if case.training.packing == "best_fit":
            used = [tokens[1:] for _, tokens in read[:-1]]
            assert Counter(found) == Counter(chain(*used))
        else:
            first = int(case.training.varlen)
            targets = [*chain(*(tokens[first:] for _, tokens in read))][1 - first :]
            assert found == targets[: len(found)]
        in_epoch.update(tuple(tokens) for epoch, tokens in read if epoch == 0)
    assert in_epoch == Counter((*text.encode(), EOS) for text in TEXTS["a"] if text)


def test_a_token_cache_gives_what_its_table_gave_and_goes_on_with_it(
    files: dict[str, str], tmp_path: Path
) -> None:
    """Data may move, too: names are no part of a state."""
    (tmp_path / "a").symlink_to(files["a"])
    write_cached(tmp_path / "a", tmp_path / "cached")
    table, cache = (
        open_run(seq_len=16, dataset=dataset) for dataset in (files["a"], str(tmp_path / "cached"))
    )
    expected, _ = play(*table, 9)
    found, state = play(*cache, 4)
    further, state = play(*table, 3, state=state, world_size=2)
    last, state = play(*cache, 2, state=state)
    assert np.array_equal(np.concatenate([found, further, last]), expected)
    assert state == play(*table, 9)[1]
    linked = open_run(seq_len=16, dataset=str(tmp_path / "a"))
    assert np.array_equal(play(*linked, 2, state=state)[0], play(*table, 2, state=state)[0])


DAMAGED, EMPTY = "damaged", "empty"
TOO_LONG = "x" * 300
"""Of the limit in these tests."""
GOOD = [f"good {i}" for i in range(40)]


def write_bad_json_lines(folder: Path) -> Counter[str]:
    lines = [json.dumps({"text": text}).encode() for text in GOOD]
    bad = [b'{"text": "\xff"}', b'{"text": null}', b'{"other": "a"}', b'{"text": ""}', b"{", b'"a"']
    bad.append(json.dumps({"text": TOO_LONG}).encode())
    for i, line in enumerate(bad):
        lines.insert(5 * i + 3, line)
    (folder / "0.jsonl").write_bytes(b"\n".join(lines[:20]) + b"\n")
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[20:])))
    # ends in the middle
    data = gzip.compress(json.dumps({"text": "good, but cut off"}).encode() * 99)
    (folder / "2.jsonl.gz").write_bytes(data[:-20])
    return Counter({DAMAGED: 6, EMPTY: 2})


def write_bad_parquet(folder: Path) -> Counter[str]:
    texts = [*GOOD[:30], None, TOO_LONG, "", *GOOD[30:]]
    pq.write_table(pa.table({"text": texts[:20]}), folder / "0.parquet")
    pq.write_table(pa.table({"text": texts[20:]}), folder / "1.parquet")
    (folder / "2.parquet").write_bytes(b"PAR1 not quite")
    return Counter({DAMAGED: 2, EMPTY: 2})


def write_bad_texts(folder: Path) -> Counter[str]:
    for i, text in enumerate([*GOOD, "", TOO_LONG]):
        (folder / f"{i:02}.txt").write_text(text)
    (folder / "99.txt").write_bytes(b"abc\xff")
    return Counter({DAMAGED: 2, EMPTY: 1})


class Counting(Encoder):
    """Keeps what it was given."""

    read: list[Record | Skipped]

    def __call__(self, record: Record | Skipped) -> Document | Skipped:
        self.read.append(record)
        return super().__call__(record)


def open_counted(dataset: Path, **options: Any) -> tuple[TrainingConfig, RunData, list]:
    training, data = open_run(seq_len=16, dataset=str(dataset), max_document_bytes=200, **options)
    encoder = Counting(BYTE, add_bos=False)
    encoder.read = []
    counted = data.training[0]._replace(encoder=encoder)
    return training, replace(data, training=(counted,)), encoder.read


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("write", [write_bad_json_lines, write_bad_parquet, write_bad_texts])
def test_what_is_used_up_and_what_is_passed_over_is_what_was_read(
    tmp_path: Path, write: Callable[[Path], Counter[str]], streaming: bool
) -> None:
    expected = write(tmp_path)
    for limit in (None, 0):
        training, data, _ = open_counted(tmp_path, streaming=streaming, max_bad_records=limit)
        with pytest.raises(UserError, match=r"(?s)[0-9].*--training\.max_bad_records N"):
            play(training, data, 99)
    training, data, read = open_counted(tmp_path, streaming=streaming, max_bad_records=10**6)
    batches = build_batches(training, data, rank=0, world_size=1)
    assert len([*islice(batches, 60)]) == 60
    skipped = [record for record in read if isinstance(record, Skipped)]
    state = merge_states([batches.state_dict()])
    # without varlen each lane is inside of a document, which is not used up yet
    assert batches.consumed_documents + batches.skipped_documents + ROWS == len(read)
    assert batches.bad_documents == batches.skipped_documents == len(skipped)
    kinds = {record.where: record.why for record in skipped}
    assert Counter(kinds.values()) == expected
    epochs = [*chain(*epochs_of(state))]
    times = Counter(record.where if isinstance(record, Skipped) else record for record in read)
    assert all(min(epochs) <= count <= max(epochs) + 1 for count in times.values())
    assert {record for record in read if record in GOOD} == {*GOOD}


def test_a_file_that_vanishes_is_passed_over_or_stops_a_stream(tmp_path: Path) -> None:
    for i in range(3):
        write_json_lines(tmp_path / f"{i}.jsonl", GOOD[10 * i : 10 * i + 10])
    for limit in (None, 0, 3, 10**6):
        gone = tmp_path / "2.jsonl"
        write_json_lines(gone, GOOD[20:30])
        training, data, read = open_counted(tmp_path, streaming=True, max_bad_records=limit)
        batches = build_batches(training, data, rank=0, world_size=1)
        steps = iter(batches)
        assert len([next(steps) for _ in range(5)]) == 5
        assert batches.bad_documents == 0
        gone.unlink()
        if limit is None or limit < 10:
            with pytest.raises(UserError, match=r"2\.jsonl.*\n.*--training\.max_bad_records"):
                assert len([next(steps) for _ in range(99)]) == 99
            assert batches.bad_documents <= (limit or 0)
            continue
        assert len([next(steps) for _ in range(99)]) == 99
        assert batches.consumed_documents + batches.skipped_documents + ROWS == len(read)
        assert batches.bad_documents > 3


EVALUATION = EvaluationConfig(held_out_share=0.3, batch_size=2)


def test_held_out_documents_are_those_that_training_does_not_read(files: dict[str, str]) -> None:
    """Of files, of a stream, and of a token cache: the same ones."""
    sides = set()
    for dataset, streaming in ((files["c"], False), (f"{files['c']}.jsonl", True)):
        training = TrainingConfig(dataset=dataset, streaming=streaming, seq_len=16, batch_size=4)
        data = open_data(training, replace(EVALUATION, dataset=dataset), BYTE)
        assert data.evaluation is not None
        sides.add(
            tuple(
                frozenset(
                    tuple(document.tokens.tolist())
                    for document, _ in part.in_order()
                    if isinstance(document, Document)
                )
                for part in (data.training[0], data.evaluation)
            )
        )
        training = replace(training, num_workers=0)
        batches = build_batches(training, data, rank=0, world_size=1)
        assert len([*islice(batches, 50)]) == 50
        # held-out documents are passed over, but not bad; one text is empty
        assert batches.skipped_documents > batches.bad_documents == 0
        held_out = build_evaluation_batches(training, EVALUATION, data, rank=0, world_size=1)
        assert held_out is not None
        _, evaluated = next(iter(sides))
        assert held_out.num_documents == len(evaluated)
        assert held_out.num_tokens == held_out.num_bytes + len(evaluated)
    ((trained, evaluated),) = sides
    assert not trained & evaluated
    assert trained | evaluated == {(*text.encode(), EOS) for text in TEXTS["c"] if text}
    assert 4 < len(evaluated) < 20


def test_what_changes_the_tokens_is_refused_by_name(files: dict[str, str], tmp_path: Path) -> None:
    options = {"dataset": "{a},{b}".format(**files), "data_probs": (1, 3), "seq_len": 16}
    _, state = play(*open_run(**options), 2)
    assert play(*open_run(**{**options, "data_probs": (0.5, 1.5)}), 1, state=state)[1]
    write_json_lines(tmp_path / "b.jsonl", [*TEXTS["b"][:-1], "changed"])
    for change, message in (
        ({"data_probs": (1, 2)}, r"training\.data_probs is \[0\.3.*, the checkpoint has \[0\.25"),
        ({"seed": 7}, "training.seed is 7, the checkpoint has 42"),
        ({"varlen": True}, r"training\.context_len is 16, the checkpoint has None"),
        (BEST_FIT, "training.packing is 'best_fit', the checkpoint has 'sequential'"),
        ({"streaming": True}, "training.streaming is True, the checkpoint has None"),
        ({"dataset": "{b},{a}".format(**files)}, "documents of dataset 1 is 50, the checkpoint ha"),
        ({"dataset": files["a"], "data_probs": None}, "documents of dataset 2 is None"),
        ({"dataset": f"{files['a']},{tmp_path}/b.jsonl"}, "content of the documents of dataset 2"),
    ):
        with pytest.raises(UserError, match=message):
            play(*open_run(**{**options, **change}), 1, state=state)
    training, _ = open_run(**options)
    other = EvaluationConfig(dataset=files["a"])
    with pytest.raises(UserError, match=r"held out of dataset 1 is 0\.01, the checkpoint has None"):
        play(training, open_data(training, other, BYTE), 1, state=state)


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content }}|{% endgeneration %}{% else %}{{ message.content }}?{% endif %}"
    "{% endfor %}"
)


def test_conversations_have_targets_that_differ_between_ranks(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("byte", False)
    tokenizer.chat_template = TEMPLATE
    lines = [
        {
            "messages": [
                {"role": "user", "content": "q" * (i % 5 + 1)},
                {"role": "assistant", "content": "a" * (i % 7 + 1)},
            ]
        }
        for i in range(30)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = TrainingConfig(
        dataset=str(tmp_path / "chat.jsonl"), batch_size=4, seq_len=16, num_workers=0
    )
    evaluation = EvaluationConfig(dataset=str(tmp_path / "chat.jsonl"), held_out_share=0.3)
    data = open_data(training, evaluation, tokenizer)
    batches = build_batches(training, data, rank=0, world_size=1)
    assert not batches.constant_targets
    ((batch,),) = islice(batches, 1)
    wanted = set(batch["labels"].flatten().tolist()) - {IGNORED_LABEL}
    assert ord("a") in wanted
    assert ord("q") not in wanted
    assert batch["num_targets"] == (batch["labels"][:, 1:] != IGNORED_LABEL).sum()
    held_out = build_evaluation_batches(training, evaluation, data, rank=0, world_size=1)
    assert held_out is not None
    assert 0 < sum(batch["num_targets"] for batch in held_out) < held_out.num_tokens
    # all of them but the end of the document stand for text
    said = sum(batch["num_targets"] for batch in held_out) - held_out.num_documents
    assert held_out.num_bytes == said
    state = merge_states([batches.state_dict()])
    tokenizer.chat_template = TEMPLATE.replace("?", "!")
    changed = open_data(training, evaluation, tokenizer)
    with pytest.raises(UserError, match="tokenizer is "):
        build_batches(training, changed, rank=0, world_size=1, state=state)
