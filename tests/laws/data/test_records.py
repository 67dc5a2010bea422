"""What is used and what is skipped is together what was read, for every kind of record."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.config.errors import UserError
from flame_accel.config.evaluation_sets import MAIN_SET
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.from_options import (
    RunData,
    build_evaluation_batches,
    build_step_batches,
    open_data,
)
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.loading.stream_state import merge_rank_states
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import load_tokenizer
from tests.helpers.data_runs import (
    BYTE,
    EOS,
    ROWS,
    TEXTS,
    epochs_of,
    open_run,
    play,
    write_json_lines,
)

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


def open_counted(dataset: Path, **options: Any) -> tuple[TrainingConfig, RunData, list]:
    """A run, and all records that its encoder is given."""
    read: list[Record | Skipped] = []

    class Counting(Encoder):
        def __call__(self, record: Record | Skipped) -> Document | Skipped:
            read.append(record)
            return super().__call__(record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flame_accel.data.from_options.Encoder", Counting)
        training, data = open_run(
            seq_len=16, dataset=str(dataset), max_document_bytes=200, **options
        )
    return training, data, read


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("write", [write_bad_json_lines, write_bad_parquet, write_bad_texts])
def test_what_is_used_up_and_what_is_skipped_is_what_was_read(
    tmp_path: Path, write: Callable[[Path], Counter[str]], streaming: bool
) -> None:
    expected = write(tmp_path)
    for limit in (None, 0):
        training, data, _ = open_counted(tmp_path, streaming=streaming, max_bad_records=limit)
        with pytest.raises(UserError, match=r"(?s)[0-9].*--training\.max_bad_records N"):
            play(training, data, 99)
    training, data, read = open_counted(tmp_path, streaming=streaming, max_bad_records=10**6)
    batches = build_step_batches(training, data, rank=0, world_size=1)
    assert len([*islice(batches, 60)]) == 60
    skipped = [record for record in read if isinstance(record, Skipped)]
    state = merge_rank_states([batches.state_dict()])
    # without varlen each lane is inside of a document, which is not used up yet
    assert batches.counts_of_rank.consumed + batches.counts_of_rank.skipped + ROWS == len(read)
    assert batches.counts_of_rank.bad == batches.counts_of_rank.skipped == len(skipped)
    kinds = {record.where: record.why for record in skipped}
    assert Counter(kinds.values()) == expected
    epochs = [*chain(*epochs_of(state))]
    times = Counter(record.where if isinstance(record, Skipped) else record for record in read)
    assert all(min(epochs) <= count <= max(epochs) + 1 for count in times.values())
    assert {record for record in read if record in GOOD} == {*GOOD}


def test_a_file_that_vanishes_is_skipped_or_stops_a_stream(tmp_path: Path) -> None:
    for i in range(3):
        write_json_lines(tmp_path / f"{i}.jsonl", GOOD[10 * i : 10 * i + 10])
    for limit in (None, 0, 3, 10**6):
        gone = tmp_path / "2.jsonl"
        write_json_lines(gone, GOOD[20:30])
        training, data, read = open_counted(tmp_path, streaming=True, max_bad_records=limit)
        batches = build_step_batches(training, data, rank=0, world_size=1)
        steps = iter(batches)
        assert len([next(steps) for _ in range(5)]) == 5
        assert batches.counts_of_rank.bad == 0
        gone.unlink()
        if limit is None or limit < 10:
            with pytest.raises(UserError, match=r"2\.jsonl.*\n.*--training\.max_bad_records"):
                assert len([next(steps) for _ in range(99)]) == 99
            assert batches.counts_of_rank.bad <= (limit or 0)
            continue
        assert len([next(steps) for _ in range(99)]) == 99
        assert batches.counts_of_rank.consumed + batches.counts_of_rank.skipped + ROWS == len(read)
        assert batches.counts_of_rank.bad > 3


EVALUATION = EvaluationConfig(held_out_share=0.3, batch_size=2)


def test_held_out_documents_are_those_that_training_does_not_read(files: dict[str, str]) -> None:
    """Of files, of a stream, and of a token cache: the same ones."""
    sides = set()
    for dataset, streaming in ((files["c"], False), (f"{files['c']}.jsonl", True)):
        training = TrainingConfig(dataset=dataset, streaming=streaming, seq_len=16, batch_size=4)
        data = open_data(training, replace(EVALUATION, dataset=dataset), BYTE)
        evaluation = data.evaluation[MAIN_SET]
        sides.add(
            tuple(
                frozenset(
                    tuple(document.tokens.tolist())
                    for document, _ in part.read_in_order()
                    if isinstance(document, Document)
                )
                for part in (data.training[0], evaluation)
            )
        )
        training = replace(training, num_workers=0)
        batches = build_step_batches(training, data, rank=0, world_size=1)
        assert len([*islice(batches, 50)]) == 50
        # held-out documents are passed over, but not bad; one text is empty
        assert batches.counts_of_rank.skipped > batches.counts_of_rank.bad == 0
        options = replace(EVALUATION, dataset=dataset)
        [held_out] = build_evaluation_batches(
            training, options, data, rank=0, world_size=1
        ).values()
        _, evaluated = next(iter(sides))
        num_tokens = sum(map(len, evaluated))
        assert sum(batch["num_targets"] for batch in held_out) == num_tokens - 1
        assert held_out.num_target_bytes == num_tokens - len(evaluated)
    ((trained, evaluated),) = sides
    assert not trained & evaluated
    assert trained | evaluated == {(*text.encode(), EOS) for text in TEXTS["c"] if text}
    assert 4 < len(evaluated) < 20


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
    batches = build_step_batches(training, data, rank=0, world_size=1)
    assert not batches.constant_targets
    ((batch,),) = islice(batches, 1)
    wanted = set(batch["labels"].flatten().tolist()) - {IGNORED_LABEL}
    assert ord("a") in wanted
    assert ord("q") not in wanted
    assert batch["num_targets"] == (batch["labels"][:, 1:] != IGNORED_LABEL).sum()
    [held_out] = build_evaluation_batches(training, evaluation, data, rank=0, world_size=1).values()
    found = [document for document, _ in data.evaluation[MAIN_SET].read_in_order()]
    documents = [document for document in found if isinstance(document, Document)]
    num_targets = sum(batch["num_targets"] for batch in held_out)
    assert 0 < num_targets < sum(len(document.tokens) for document in documents)
    # all of them but the end of the document stand for text
    assert held_out.num_target_bytes == num_targets - len(documents)
    state = merge_rank_states([batches.state_dict()])
    tokenizer.chat_template = TEMPLATE.replace("?", "!")
    changed = open_data(training, evaluation, tokenizer)
    with pytest.raises(UserError, match="tokenizer is "):
        build_step_batches(training, changed, rank=0, world_size=1, state=state)
