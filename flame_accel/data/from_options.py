"""Documents and batches of a run, from its sections `training` and `evaluation`.

Only names meet here: what a source, a lane or an evaluation is, is said by the modules that do the
work.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.dataset import Dataset, open_dataset
from flame_accel.data.documents import Document, Skipped
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.loading.evaluation_batches import EvaluationBatches, pack_evaluation_batches
from flame_accel.data.loading.step_batches import StepBatches, StepLayout
from flame_accel.data.loading.workers import LoaderOptions, Stream
from flame_accel.data.sources.opening import open_training_and_evaluation
from flame_accel.data.sources.options import (
    evaluation_dataset_options,
    shares,
    training_dataset_options,
)
from flame_accel.data.tokens.tokenizer import resolve_add_bos, tokenizer_identity

SEED_STEP = 1_000_003
"""The seeds of two sources of a mixture are so far apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """The datasets of a run."""

    training: tuple[Dataset, ...]
    """What it learns from ..."""
    shares: tuple[float, ...]
    """... and their shares in the tokens; their sum is 1."""
    evaluation: Dataset | None
    """What it is evaluated on, if anything."""
    tokenizer: PreTrainedTokenizerBase
    add_bos: bool
    """Whether documents start with bos."""

    def __str__(self) -> str:
        if len(self.training) == 1:
            return str(self.training[0])
        pairs = zip(self.shares, self.training, strict=True)
        return "; ".join(f"{share:.1%} {dataset}" for share, dataset in pairs)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The ids that a model's config names: `bos_token_id`, `eos_token_id`, `pad_token_id`."""
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name)
        assert value is None or isinstance(value, int)
        ids[name] = value
    return ids


def open_data(
    training: TrainingConfig, evaluation: EvaluationConfig, tokenizer: PreTrainedTokenizerBase
) -> RunData:
    """Open the datasets of a run, and keep those of training and evaluation apart.

    Raises:
        UserError: a dataset does not open, or was tokenised by another tokenizer; options do not
            fit together; bos is asked for and the tokenizer has none.
    """
    add_bos = resolve_add_bos(tokenizer, training.add_bos)
    sides, held_out = open_training_and_evaluation(
        training_dataset_options(training),
        evaluation_dataset_options(evaluation, training),
        evaluation.held_out_share,
    )
    return RunData(
        training=tuple(open_dataset(side, tokenizer, add_bos=add_bos) for side in sides),
        shares=shares(training),
        evaluation=held_out and open_dataset(held_out, tokenizer, add_bos=add_bos),
        tokenizer=tokenizer,
        add_bos=add_bos,
    )


def build_stream(training: TrainingConfig, data: RunData, *, num_lanes: int) -> Stream:
    """What the lanes of a run have in common, for steps of so many rows."""
    return Stream(
        sources=[
            dataset.source(seed=training.seed + SEED_STEP * i, block=training.shuffle_block)
            for i, dataset in enumerate(data.training)
        ],
        shares=data.shares,
        packing=build_packing(training, data.tokenizer),
        num_lanes=num_lanes,
        policy=SkipPolicy(training.max_bad_records),
        constant_targets=not training.varlen
        and not any(dataset.conversations for dataset in data.training),
    )


def build_packing(training: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> Packing:
    """How documents fill the rows of a run."""
    ids = special_token_ids(tokenizer)
    pad = ids["eos_token_id"] if ids["pad_token_id"] is None else ids["pad_token_id"]
    assert pad is not None
    return Packing(
        seq_len=training.seq_len,
        context_len=(training.context_len or training.seq_len) if training.varlen else None,
        best_fit=training.packing == "best_fit",
        padding=pad,
    )


def build_batches(
    training: TrainingConfig,
    data: RunData,
    *,
    rank: int,
    world_size: int,
    accumulation: int | None = None,
    state: Mapping[str, Any] | None = None,
) -> StepBatches:
    """The training stream of one data-parallel rank, as the ``training`` section describes it.

    Args:
        training: the section.
        data: the datasets.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        accumulation: micro-batches per step; None takes training.gradient_accumulation_steps.
        state: merged state of a checkpoint to continue.

    Raises:
        UserError: see ``StepBatches``.
    """
    layout = StepLayout(
        micro_batch_size=training.batch_size,
        accumulation=accumulation or training.gradient_accumulation_steps,
        rank=rank,
        world_size=world_size,
    )
    stream = build_stream(training, data, num_lanes=layout.rows_per_step)
    return StepBatches(
        stream,
        layout,
        LoaderOptions(
            num_workers=training.num_workers,
            prefetch_factor=training.prefetch_factor,
            pin_memory=training.pin_memory,
            persistent_workers=training.persistent_workers,
        ),
        identity=stream_identity(training, data),
        state=state,
    )


def build_evaluation_batches(
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    data: RunData,
    *,
    rank: int,
    world_size: int,
) -> EvaluationBatches | None:
    """This rank's batches of the held-out documents, packed as in training; None without any.

    Raises:
        UserError: no document, or records that the training data's policy refuses.
    """
    if data.evaluation is None:
        return None
    return pack_evaluation_batches(
        _with_scored_bytes(data.evaluation, data.tokenizer),
        build_packing(training, data.tokenizer),
        name=f"evaluation.dataset {data.evaluation.records.name!r}",
        policy=SkipPolicy(training.max_bad_records),
        batch_size=evaluation.batch_size,
        rank=rank,
        world_size=world_size,
        max_tokens=evaluation.max_tokens,
    )


def stream_identity(training: TrainingConfig, data: RunData) -> dict[str, Any]:
    """What must be the same for cursors to mean the same tokens; not where the data lies."""
    conversations = any(dataset.conversations for dataset in data.training)
    packing = build_packing(training, data.tokenizer)
    identity: dict[str, Any] = {
        "training.seed": training.seed,
        "training.seq_len": packing.seq_len,
        "training.varlen": packing.varlen,
        "training.context_len": packing.context_len,
        "training.packing": training.packing,
        # longer documents are passed over
        "training.max_document_bytes": training.max_document_bytes,
        "bos added": data.add_bos,
        "tokenizer": tokenizer_identity(data.tokenizer, conversations=conversations),
    }
    if len(data.training) > 1:
        identity["training.data_probs"] = list(data.shares)
    if any(dataset.num_documents is None for dataset in data.training):
        identity["training.streaming"] = True
        identity["training.shuffle_block"] = training.shuffle_block
    for i, dataset in enumerate(data.training):
        which = f" of dataset {i + 1}" if len(data.training) > 1 else ""
        identity[f"documents{which}"] = dataset.num_documents
        identity[f"content of the documents{which}"] = dataset.records.fingerprint
        if dataset.held_out is not None:
            identity[f"held out{which}"] = dataset.held_out.share
    return identity


def _with_scored_bytes(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document | Skipped, int]]:
    """What each record gives, and the bytes that its targets stand for: what the loss is spent on.

    Of a text all, of a conversation what the assistant says.
    """
    for document, size in dataset.in_order():
        if isinstance(document, Document) and document.targets is not None:
            text = tokenizer.decode(
                document.tokens[document.targets].tolist(),
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            assert isinstance(text, str)
            size = len(text.encode("utf-8"))
        yield document, size
