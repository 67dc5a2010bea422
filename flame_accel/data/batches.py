"""The loader: the micro-batches of each optimizer step for one data-parallel rank.

Row ``l`` of a step comes from lane ``l``, whatever the number of ranks, workers and micro-batches:
a rank owns a contiguous share of the lanes, its worker processes share them out again, and
micro-batch ``m`` takes the ``m``-th ``micro_batch_size`` of the rank's rows. Workers send their
cursors with the rows, so that the state is that of the last step handed out, however far they have
read ahead. Moving batches to a device is the caller's part.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from flame_accel.config.errors import UserError
from flame_accel.config.training import TrainingConfig
from flame_accel.data.documents import Documents
from flame_accel.data.lanes import Cursor, Encode, Lane, Order, Packing, Row, lane_length
from flame_accel.data.micro_batch import MicroBatch, build_micro_batch, pin
from flame_accel.data.order import EpochOrder
from flame_accel.data.state import Identity, accumulation_for, rank_state, read_cursors
from flame_accel.data.tokenizer import DocumentEncoder, resolve_add_bos, tokenizer_identity


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLayout:
    """How the rows of a step are dealt out."""

    micro_batch_size: int
    """Rows per rank and micro-batch."""
    accumulation: int
    """Micro-batches per step."""
    rank: int
    """Data-parallel rank of this process."""
    world_size: int
    """Number of data-parallel ranks."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a step on all ranks; the number of lanes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @property
    def lanes(self) -> range:
        """The lanes of this rank."""
        share = self.micro_batch_size * self.accumulation
        return range(self.rank * share, (self.rank + 1) * share)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderOptions:
    """How the loader works; none of it changes what it yields."""

    num_workers: int = 0
    """Worker processes, at most one per lane of the rank; 0 loads in this process."""
    prefetch_factor: int = 2
    """Steps that each worker reads ahead."""
    pin_memory: bool = False
    """Hand out page-locked tensors where there is a CUDA device."""
    persistent_workers: bool = False
    """Keep the workers, and what they have read ahead, when an iteration is left."""


class _Share(NamedTuple):
    """The rows of one worker's lanes for one step, and where these lanes stand after them."""

    rows: list[Row]
    cursors: list[Cursor]


class _LaneRows(IterableDataset):
    """The steps of some lanes; in a worker process, of this worker's share of them."""

    def __init__(
        self,
        encode: Encode,
        order: Order,
        packing: Packing,
        *,
        lanes: range,
        num_lanes: int,
        cursors: Sequence[Cursor],
    ) -> None:
        self._encode = encode
        self._order = order
        self._packing = packing
        self._lanes = lanes
        self._num_lanes = num_lanes
        self._cursors = cursors

    def __iter__(self) -> Iterator[_Share | UserError]:
        """Yield a share per step, for ever; a problem for the user is yielded, then the end."""
        lanes = [
            Lane(
                self._encode,
                self._order,
                self._packing,
                lane=self._lanes[i],
                num_lanes=self._num_lanes,
                cursor=self._cursors[i],
            )
            for i in _worker_share(len(self._lanes))
        ]
        try:
            while True:
                rows = [lane.next_row() for lane in lanes]
                yield _Share(rows, [lane.cursor for lane in lanes])
        except UserError as error:
            # raised here it would reach the user inside torch's report of a worker's traceback
            yield error


class StepBatches:
    """The optimizer steps of one rank, without end.

    Each iteration goes on behind the last step handed out; only one iteration may be under way.

    Args:
        encode: gives the tokens of a document.
        order: the order of the documents.
        packing: how documents fill rows.
        layout: how the rows of a step are dealt out.
        loader: processes and memory.
        identity: what a state must agree with to be continued here.
        state: a merged state to continue; None starts at the beginning.

    Raises:
        UserError: fewer documents than lanes, or a state that cannot be continued.
    """

    def __init__(
        self,
        encode: Encode,
        order: Order,
        packing: Packing,
        layout: StepLayout,
        loader: LoaderOptions,
        *,
        identity: Identity,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if order.num_documents < layout.rows_per_step:
            raise _too_few_documents(order.num_documents, layout)
        self._encode = encode
        self._order = order
        self._packing = packing
        self._layout = layout
        self._loader = loader
        self._identity = identity
        self._steps = 0
        self._cursors = [Cursor()] * len(layout.lanes)
        self._kept: Iterator[_Share | UserError] | None = None
        if state is not None:
            _check_rows_per_step(state["rows_per_step"], layout)
            self._cursors = read_cursors(state, identity, layout.lanes)
            self._steps = state["steps"]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yield the ``accumulation`` micro-batches of each step."""
        shares = self._kept if self._kept is not None else self._start()
        if self._loader.persistent_workers:
            self._kept = shares
        size = self._layout.micro_batch_size
        pinned = self._loader.pin_memory and torch.cuda.is_available()
        while True:
            step = [_or_raise(next(shares)) for _ in range(max(1, self._num_workers))]
            rows = [row for share in step for row in share.rows]
            batches = [
                build_micro_batch(rows[i : i + size], self._packing)
                for i in range(0, len(rows), size)
            ]
            self._cursors = [cursor for share in step for cursor in share.cursors]
            self._steps += 1
            yield [pin(batch) for batch in batches] if pinned else batches

    def state_dict(self) -> dict[str, Any]:
        """State of this rank's lanes behind the last step handed out; see ``merge_states``."""
        return rank_state(
            self._identity,
            rows_per_step=self._layout.rows_per_step,
            steps=self._steps,
            first_lane=self._layout.lanes.start,
            cursors=self._cursors,
        )

    @property
    def epoch(self) -> float:
        """Passes over the data so far, of this rank's lanes, by documents."""
        lengths = [
            lane_length(self._order.num_documents, lane, self._layout.rows_per_step)
            for lane in self._layout.lanes
        ]
        read = sum(c.epoch * n + c.position for c, n in zip(self._cursors, lengths, strict=True))
        return read / sum(lengths)

    @property
    def skipped_documents(self) -> int:
        """Documents without text that this rank's lanes have passed over."""
        return sum(cursor.skipped for cursor in self._cursors)

    @property
    def _num_workers(self) -> int:
        return min(self._loader.num_workers, len(self._layout.lanes))

    def _start(self) -> Iterator[_Share | UserError]:
        """Start the workers at the current cursors.

        Items of the loader alternate between its workers in order, so that every ``num_workers``
        of them make a step.
        """
        lanes = _LaneRows(
            self._encode,
            self._order,
            self._packing,
            lanes=self._layout.lanes,
            num_lanes=self._layout.rows_per_step,
            cursors=self._cursors,
        )
        workers = self._num_workers
        loader = DataLoader(
            lanes,
            batch_size=None,
            collate_fn=_as_is,
            num_workers=workers,
            prefetch_factor=self._loader.prefetch_factor if workers else None,
            worker_init_fn=_leave_signals_to_the_run,
            # torch draws a seed for its workers: not from the generator that the model uses
            generator=torch.Generator(),
        )
        with _serial_tokenizers(workers > 0):
            return iter(loader)


def build_batches(
    training: TrainingConfig,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int,
    world_size: int,
    accumulation: int | None = None,
    state: Mapping[str, Any] | None = None,
) -> StepBatches:
    """The training stream of one data-parallel rank, as the ``training`` section describes it.

    Args:
        training: the section.
        documents: the training documents.
        tokenizer: the tokenizer, with an eos token.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        accumulation: micro-batches per step; None takes training.gradient_accumulation_steps.
        state: merged state of a checkpoint to continue.

    Raises:
        UserError: see ``StepBatches``; or bos is asked for and the tokenizer has none.
    """
    add_bos = resolve_add_bos(tokenizer, training.add_bos)
    packing = Packing(
        seq_len=training.seq_len,
        context_len=(training.context_len or training.seq_len) if training.varlen else None,
    )
    return StepBatches(
        DocumentEncoder(documents, tokenizer, add_bos=add_bos),
        EpochOrder(num_documents=len(documents), seed=training.seed),
        packing,
        StepLayout(
            micro_batch_size=training.batch_size,
            accumulation=accumulation or training.gradient_accumulation_steps,
            rank=rank,
            world_size=world_size,
        ),
        LoaderOptions(
            num_workers=training.num_workers,
            prefetch_factor=training.prefetch_factor,
            pin_memory=training.pin_memory,
            persistent_workers=training.persistent_workers,
        ),
        identity={
            "training.seed": training.seed,
            "training.seq_len": packing.seq_len,
            "training.varlen": packing.varlen,
            "training.context_len": packing.context_len,
            "bos added": add_bos,
            "documents": len(documents),
            "content of the documents": documents.fingerprint,
            "tokenizer": tokenizer_identity(tokenizer),
        },
        state=state,
    )


def _worker_share(num_lanes: int) -> range:
    """Which of the lanes this process works on: contiguous shares, in the order of the workers."""
    worker = get_worker_info()
    if worker is None:
        return range(num_lanes)
    start, stop = (num_lanes * i // worker.num_workers for i in (worker.id, worker.id + 1))
    return range(start, stop)


def _or_raise(item: _Share | UserError) -> _Share:
    if isinstance(item, UserError):
        raise item
    return item


def _as_is(item: Any) -> Any:
    return item


def _leave_signals_to_the_run(worker: int) -> None:
    """Survive the signals that a terminal or a scheduler sends to every process of a run.

    The run answers them at the end of a step with a checkpoint; workers end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _serial_tokenizers(active: bool) -> Iterator[None]:
    """Let processes that start inside tokenise without threads of their own.

    There are as many workers as asked for, and a thread pool does not survive a fork.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if active:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif active:
            del os.environ[name]


def _check_rows_per_step(saved: int, layout: StepLayout) -> None:
    if saved == layout.rows_per_step:
        return
    accumulation = accumulation_for(
        saved, micro_batch_size=layout.micro_batch_size, world_size=layout.world_size
    )
    raise UserError(
        f"a step has {layout.rows_per_step} rows (training.batch_size {layout.micro_batch_size} x "
        f"{layout.world_size} ranks x training.gradient_accumulation_steps {layout.accumulation}), "
        f"the checkpoint's have {saved}",
        where="training.gradient_accumulation_steps",
        remedy=f"use training.gradient_accumulation_steps {accumulation}",
    )


def _too_few_documents(num_documents: int, layout: StepLayout) -> UserError:
    return UserError(
        f"{num_documents} documents are fewer than the {layout.rows_per_step} rows of a step "
        f"(training.batch_size {layout.micro_batch_size} x {layout.world_size} ranks x "
        f"training.gradient_accumulation_steps {layout.accumulation}): each row of a step reads "
        "documents of its own",
        where="training.dataset",
        remedy="use fewer rows per step, or more documents: a plain text file is one document, a "
        "line of a .jsonl file is one",
    )
