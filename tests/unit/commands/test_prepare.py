"""`python -m flame_accel prepare`: the documents of a run, tokenized beforehand."""

import json
import os
import signal
from pathlib import Path

import pytest

from flame_accel.__main__ import main
from flame_accel.commands import prepare
from flame_accel.config import UserError
from flame_accel.data.cache import chunk_encoder, shard_writer
from flame_accel.data.cache.file_format import MANIFEST, read_manifest
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.encoded_datasets import EncodedTable
from flame_accel.data.sources.opening import DatasetOptions, open_chosen_split
from flame_accel.data.sources.table import Table
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import load_tokenizer, tokenizer_identity

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% generation %}{{ m['content'] }}"
    "{% endgeneration %}\n{% endfor %}"
)


@pytest.fixture(autouse=True)
def small_chunks_and_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(chunk_encoder, "CHUNK_BYTES", 500)
    monkeypatch.setattr(shard_writer, "MAX_SHARD_BYTES", 4_000)


@pytest.fixture(autouse=True)
def private_table_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))


def prepare_command(dataset: Path | str, output: Path, **options: object) -> list[str]:
    given = {
        "training.dataset": dataset,
        "model.tokenizer_path": "byte",
        "output": output,
        "processes": 1,
        **options,
    }
    return ["prepare", *(f"--{name}={value}" for name, value in given.items())]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_records(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def assert_same_documents(cache: TokenCache, online: EncodedTable) -> None:
    assert len(cache) == len(online)
    assert cache.sampled_records_fingerprint == online.sampled_records_fingerprint
    for i in range(len(online)):
        found, expected = cache[i], online[i]
        if isinstance(expected, Skipped):
            assert isinstance(found, Skipped)
            assert found.why == expected.why
            continue
        assert isinstance(found, Document)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert (found.targets is None) == (expected.targets is None)
        if found.targets is not None and expected.targets is not None:
            assert found.targets.tolist() == expected.targets.tolist()


def test_the_cache_gives_the_documents_of_the_run(corpus: Path, tmp_path: Path, capsys):
    main(prepare_command(corpus, tmp_path / "one"))
    assert "40 documents" in capsys.readouterr().out
    main(prepare_command(corpus, tmp_path / "two", processes=2))
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")
    assert len(read_manifest(tmp_path / "one")["shards"]) > 1
    tokenizer = load_tokenizer("byte", False)
    table = open_chosen_split(DatasetOptions(dataset=str(corpus)))
    assert isinstance(table, Table)
    cache = TokenCache(
        tmp_path / "one", tokenizer_identity=tokenizer_identity(tokenizer), add_bos=False
    )
    assert_same_documents(cache, EncodedTable(table, Encoder(tokenizer, add_bos=False)))


def test_conversations_are_those_of_the_run(tmp_path: Path):
    tokenizer = load_tokenizer("byte", False)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"), False)
    conversations = [
        [{"role": "user", "content": "why? " * i}, {"role": "assistant", "content": "so"}]
        for i in range(1, 30)
    ]
    path = write_records(tmp_path / "chat.jsonl", [{"messages": c} for c in conversations])
    options = {"model.tokenizer_path": tmp_path / "tokenizer"}
    main(prepare_command(path, tmp_path / "cache", **options))
    main(prepare_command(path, tmp_path / "cache2", processes=2, **options))
    assert read_files(tmp_path / "cache") == read_files(tmp_path / "cache2")
    table = open_chosen_split(DatasetOptions(dataset=str(path)))
    assert isinstance(table, Table)
    identity = tokenizer_identity(tokenizer, with_chat_template=True)
    cache = TokenCache(tmp_path / "cache", tokenizer_identity=identity, add_bos=False)
    assert read_manifest(tmp_path / "cache")["targets"]
    assert_same_documents(cache, EncodedTable(table, Encoder(tokenizer, add_bos=False)))


def test_a_finished_cache_is_left_and_another_is_refused(corpus: Path, tmp_path: Path, capsys):
    main(prepare_command(corpus, tmp_path / "cache"))
    before = read_files(tmp_path / "cache")
    main(prepare_command(corpus, tmp_path / "cache"))
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(
            prepare_command(corpus, tmp_path / "cache", **{"training.max_document_bytes": 100_000})
        )
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "training.max_document_bytes was 67108864, now 100000" in said
    assert "--overwrite" in said
    assert read_files(tmp_path / "cache") == before


@pytest.mark.covers_option("training.max_bad_records")
def test_bad_records_are_named_or_counted(tmp_path: Path, capsys):
    records = [{"text": f"text {i}"} for i in range(50)]
    records[20], records[30] = {"text": 7}, {"text": ""}
    path = write_records(tmp_path / "data.jsonl", records)
    with pytest.raises(SystemExit) as stopped:
        main(prepare_command(path, tmp_path / "cache"))
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert "--training.max_bad_records" in said
    main(prepare_command(path, tmp_path / "cache", **{"training.max_bad_records": 2}))
    assert "1 are empty and 1 are damaged" in capsys.readouterr().out


def test_a_token_cache_is_no_data_for_another(corpus: Path, tmp_path: Path, capsys):
    main(prepare_command(corpus, tmp_path / "cache"))
    with pytest.raises(SystemExit):
        main(prepare_command(tmp_path / "cache", tmp_path / "other"))
    assert "is a token cache already" in capsys.readouterr().err


@pytest.mark.parametrize("others", [[], ["--training.dataset_split=train"]])
def test_several_datasets_are_refused(corpus: Path, tmp_path: Path, capsys, others: list[str]):
    with pytest.raises(SystemExit) as stopped:
        main([*prepare_command(f"{corpus},{corpus}", tmp_path / "cache"), *others])
    assert stopped.value.code == 2
    assert "a token cache holds one" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"processes": 0}, {"training.max_bad_records": -1}, {"training.add_bos": "maybe"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_options_are_named(corpus: Path, tmp_path: Path, capsys, wrong: dict[str, object]):
    with pytest.raises(SystemExit) as stopped:
        main(prepare_command(corpus, tmp_path / "cache", **wrong))
    assert stopped.value.code == 2
    assert f"--{next(iter(wrong))}" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_same_command_continues(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, number: signal.Signals
):
    before = signal.getsignal(number)
    folder = tmp_path / "cache"
    finish = shard_writer.ShardWriter.finish

    def finish_and_signal(self: shard_writer.ShardWriter) -> dict[str, object]:
        os.kill(os.getpid(), number)
        return finish(self)

    with monkeypatch.context() as patched:
        patched.setattr(shard_writer.ShardWriter, "finish", finish_and_signal)
        with pytest.raises(SystemExit) as stopped:
            main(prepare_command(corpus, folder, processes=2))
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert (folder / "shard-00000.info").exists()
    assert not (folder / MANIFEST).exists()
    main(prepare_command(corpus, folder))
    main(prepare_command(corpus, tmp_path / "fresh"))
    assert read_files(folder) == read_files(tmp_path / "fresh")


def test_a_shown_error_of_the_work_passes_through(tmp_path: Path):
    with pytest.raises(UserError, match="full"), prepare._print_progress_until_signal(tmp_path):
        raise UserError("full")
