"""Measures the data stream: throughput, time to resume in the middle of a run, and memory.

    PYTHONPATH=. python benchmarks/data.py --parts online cache resume memory --minutes 10

* `online`: documents through table, encoder and lane into rows of 4,096 tokens, in one process,
  compared with the bare `tokenizers` library on batches of the same documents; alternating, with
  medians of the rates and of the ratios of successive turns. The documents are the sources of the
  standard library, cut to several lengths and shuffled; the tokenizer is trained on them
  (`--tokenizer` names another).
* `cache`: the same rows from a token cache, on one core.
* `resume`: from opening a cache of 1B tokens to the first rows in its middle, after its files were
  dropped from the page cache of the system. Needs 2.1 GB in the folder for temporary files.
* `memory`: of this process and its workers while they read for some minutes, the first third
  compared with the last.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data import build_step_batches, load_tokenizer, open_data
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.cache.cache_writer import CacheOrigin, write_cache_unless_finished
from flame_accel.data.cache.token_cache import TokenCache
from flame_accel.data.cursors import LaneCursor, SourceCursor
from flame_accel.data.documents import Document, Record, Skipped
from flame_accel.data.encoded_datasets import EncodedTable
from flame_accel.data.lanes.lane import Lane, build_lane
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.lanes.shuffled_table import ShuffledTable
from flame_accel.data.sources.python_stdlib import read_stdlib_sources
from flame_accel.data.sources.table import Table
from flame_accel.data.stages import IndexedDocuments
from flame_accel.data.tokens.encoder import Encoder

SEQ_LEN = 4096
VOCABULARY = 32_000
BATCH = 100
"""Texts per call of the bare library."""
ROWS = 32
"""Lanes that resume in the middle of a cache."""


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = {
        "online": measure_online,
        "cache": measure_cache,
        "resume": measure_resume,
        "memory": measure_memory,
    }
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--tokenizer", help="folder or name; default: train one")
    parser.add_argument("--characters", nargs="+", type=int, default=[2_000, 8_000, 64_000])
    parser.add_argument("--lengths", nargs="+", type=int, default=[250, 500, 1_000, 4_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each way of reading")
    kinds = ("texts", "stream", "cache")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="of the memory")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the script")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if arguments.quick:
        arguments.tokenizer, arguments.minutes, arguments.rounds = "byte", 0.05, 1
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            parts[part](arguments, Path(folder))


def measure_online(arguments: argparse.Namespace, folder: Path) -> None:
    """Tokens/s from texts."""
    tokenizer = load_tokenizer(_get_tokenizer(arguments, folder), False)
    corpus = "\n".join(read_stdlib_sources("train"))[: 100_000 if arguments.quick else 2_000_000]
    print("online     characters   tokens/document   rows, tok/s   tokenizers, tok/s   ratio")
    for size in arguments.characters:
        texts = [corpus[i : i + size] for i in range(0, len(corpus), size)]
        # tokenizers cache words: neighbours from one file would make both sides faster
        random.Random(0).shuffle(texts)
        table = Table("texts", Dataset.from_dict({"text": texts}), "text")
        documents = EncodedTable(table, Encoder(tokenizer, add_bos=False))
        num_tokens = sum(len(document.tokens) for document in _iterate_documents(documents))
        backend = tokenizer.backend_tokenizer
        assert isinstance(backend, Tokenizer)
        seconds = _measure_alternating(
            arguments.rounds,
            partial(_pack_all_rows, documents, num_tokens),
            partial(_encode_batches, backend, texts),
        )
        ours, theirs = np.median(seconds, axis=0)
        ratio = np.median(seconds[:, 1] / seconds[:, 0])
        print(
            f"           {size:10,}   {num_tokens / len(texts):15,.0f}   {num_tokens / ours:11,.0f}"
            f"   {num_tokens / theirs:17,.0f}   {ratio:5.3f}",
            flush=True,
        )


def measure_cache(arguments: argparse.Namespace, folder: Path) -> None:
    """Tokens/s from a token cache."""
    print("cache      tokens/document   documents, tok/s   rows, tok/s   varlen rows, tok/s")
    for length in arguments.lengths:
        num_tokens = 200_000 if arguments.quick else 20_000_000
        documents = _write_random_cache(folder / f"cache-{length}", num_tokens, length)
        works = (
            partial(_read_all_documents, documents),
            partial(_pack_all_rows, documents, documents.num_tokens),
            partial(_pack_all_rows, documents, documents.num_tokens, SEQ_LEN),
        )
        rates = documents.num_tokens / np.median(
            _measure_alternating(arguments.rounds, *works), axis=0
        )
        print(
            f"           {length:15,}   {rates[0]:16,.0f}   {rates[1]:11,.0f}   {rates[2]:18,.0f}",
            flush=True,
        )


def measure_resume(arguments: argparse.Namespace, folder: Path) -> None:
    """Seconds to the first rows in the middle of a large cache."""
    started_at = time.perf_counter()
    written = _write_random_cache(
        folder / "large", 2_000_000 if arguments.quick else 1_000_000_000, 500
    )
    seconds = time.perf_counter() - started_at
    print(
        f"resume     {written.num_tokens:,} tokens in {len(written):,} documents, "
        f"written in {seconds:.0f} s ({written.num_tokens / seconds:,.0f} tok/s)"
    )
    for state in ("not in memory", "in memory"):
        if state == "not in memory":
            _drop_page_cache(folder / "large")
        begin = time.perf_counter()
        documents = _open_cache(folder / "large")
        opened = time.perf_counter()
        middle = len(documents) // 2 // ROWS
        lanes = (_resume_lane(documents, lane, ROWS, middle) for lane in range(ROWS))
        next(lanes).next_row()
        first = time.perf_counter()
        for lane in lanes:
            lane.next_row()
        print(
            f"           files {state}: opened {opened - begin:.4f} s, first row "
            f"{first - begin:.4f} s, {ROWS} rows {time.perf_counter() - begin:.4f} s",
            flush=True,
        )


def measure_memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Memory while reading."""
    name = _get_tokenizer(arguments, folder)
    corpus = "\n".join(read_stdlib_sources("train"))
    texts = (corpus[i : i + 4000] for i in range(0, len(corpus), 4000))
    records, tokens = folder / "records.jsonl", folder / "tokens"
    records.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [sys.executable, "-m", "flame_accel", "prepare", f"--training.dataset={records}"]
    command += [f"--model.tokenizer_path={name}", f"--output={tokens}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print("memory     from       tok/s   first third, MB   last third, MB   ratio   without files")
    for kind in arguments.kinds:
        training = TrainingConfig(
            dataset=str(tokens if kind == "cache" else records),
            streaming=kind == "stream",
            seq_len=SEQ_LEN,
            num_workers=2,
            pin_memory=False,
        )
        rate, samples = _read_and_sample_memory(training, name, 60 * arguments.minutes)
        third = len(samples) // 3
        first, last = samples[:third].mean(axis=0), samples[-third:].mean(axis=0)
        print(
            f"           {kind:6} {rate:9,.0f}   {first[0]:15,.1f}   {last[0]:14,.1f}   "
            f"{last[0] / first[0]:5.3f}   {last[1] / first[1]:13.3f}",
            flush=True,
        )


def _read_and_sample_memory(
    training: TrainingConfig, tokenizer: str, seconds: float
) -> tuple[float, np.ndarray]:
    """Reads batches for a time: tokens/s, and megabytes [samples, (all, without file pages)]."""
    data = open_data(training, EvaluationConfig(), load_tokenizer(tokenizer, False))
    batches = iter(build_step_batches(training, data, rank=0, world_size=1))
    samples: list[tuple[float, float]] = []
    steps = 0
    begin = sampled_at = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        next(batches)
        steps += 1
        if time.perf_counter() - sampled_at >= seconds / 100:
            sampled_at = time.perf_counter()
            samples.append(_resident_megabytes())
    rate = steps * training.batch_size * SEQ_LEN / (time.perf_counter() - begin)
    return rate, np.array(samples)


def _get_tokenizer(arguments: argparse.Namespace, folder: Path) -> str:
    """The tokenizer that was named, or one that is trained here."""
    if arguments.tokenizer is None:
        arguments.tokenizer = str(folder / "tokenizer")
        script = Path(__file__).with_name("train_tokenizer.py")
        command = [sys.executable, str(script), arguments.tokenizer, str(VOCABULARY)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return arguments.tokenizer


def _measure_alternating(rounds: int, *works: Callable[[], None]) -> np.ndarray:
    """CPU seconds [rounds, works] of alternating works, after one warm-up of each.

    All work is done in this thread, whose CPU time is little disturbed by other processes.
    """
    seconds = np.zeros((rounds + 1, len(works)))
    for times in seconds:
        for number, work in enumerate(works):
            begin = time.process_time()
            work()
            times[number] = time.process_time() - begin
    return seconds[1:]


def _pack_all_rows(
    documents: IndexedDocuments, num_tokens: int, context_len: int | None = None
) -> None:
    """One pass over all documents, in rows."""
    lane = _resume_lane(documents, 0, 1, 0, context_len)
    for _ in range(num_tokens // SEQ_LEN):
        lane.next_row()


def _resume_lane(
    documents: IndexedDocuments,
    lane: int,
    num_lanes: int,
    position: int,
    context_len: int | None = None,
) -> Lane:
    """A lane that resumes at a position of the first epoch."""
    cursor = SourceCursor(position=(0, position))
    source = ShuffledTable(documents, seed=1)
    reader = source.open_reader(lane, num_lanes, cursor, SkipPolicy(), lambda skipped: None)
    packing = Packing(seq_len=SEQ_LEN, context_len=context_len)
    return build_lane([reader], [1.0], packing, LaneCursor(sources=(cursor,)))


def _iterate_documents(documents: IndexedDocuments) -> Iterator[Document]:
    for index in range(len(documents)):
        document = documents[index]
        assert isinstance(document, Document)
        yield document


def _read_all_documents(documents: IndexedDocuments) -> None:
    """One pass over all documents, without packing."""
    for _ in _iterate_documents(documents):
        pass


def _encode_batches(backend: Tokenizer, texts: list[str]) -> None:
    for start in range(0, len(texts), BATCH):
        backend.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)


class _Numbers:
    """Records that are only numbers, as many as the cache has documents."""

    name = "numbers"

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return str(index)


class _RandomTokens:
    """Documents of random tokens and lengths."""

    def __init__(self, mean_length: int) -> None:
        generator = np.random.default_rng(0)
        self._tokens = generator.integers(VOCABULARY, size=1 << 22, dtype=np.uint16)
        self._lengths = generator.integers(mean_length // 2, 3 * mean_length // 2, size=9973)

    def encode_many(self, records: Sequence[Record | Skipped]) -> list[Document | Skipped]:
        documents: list[Document | Skipped] = []
        for record in records:
            index = int(str(record))
            length = int(self._lengths[index % len(self._lengths)])
            start = index * 7919 % (len(self._tokens) - length)
            documents.append(Document(self._tokens[start : start + length]))
        return documents


def _write_random_cache(folder: Path, num_tokens: int, mean_length: int) -> TokenCache:
    """A cache of random tokens, written as `prepare` writes one."""
    recipe = CacheOrigin(
        tokenizer_identity="random", vocabulary_size=VOCABULARY, add_bos=False, source={}
    )
    records, encoder = _Numbers(num_tokens // mean_length), _RandomTokens(mean_length)
    write_cache_unless_finished(records, encoder, folder, recipe)
    return _open_cache(folder)


def _open_cache(folder: Path) -> TokenCache:
    return TokenCache(folder, tokenizer_identity="random", add_bos=False)


def _drop_page_cache(folder: Path) -> None:
    """Drops the files of a folder from the page cache of the system."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _resident_megabytes() -> tuple[float, float]:
    """Memory of this process and its children: all of it, and without pages of files."""
    resident = anonymous = 0.0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                resident += int(value.split()[0]) / 1024
            elif name == "RssAnon":
                anonymous += int(value.split()[0]) / 1024
    return resident, anonymous


if __name__ == "__main__":
    main()
