"""The data of a run, from its sections `training` and `evaluation`: datasets, lanes and batches.

Calls the stages of `stages` in their order; the work is done in `sources`, `lanes` and `loading`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.config.errors import UserError
from flame_accel.config.evaluation_sets import MAIN_SET, evaluation_sets
from flame_accel.config.synthetic_tasks import is_synthetic
from flame_accel.data.bad_records import SkipPolicy
from flame_accel.data.documents import Document, EncodedRecord
from flame_accel.data.lanes.lane import Lanes
from flame_accel.data.lanes.rows import Packing
from flame_accel.data.loading.evaluation_batches import EvaluationBatches, pack_evaluation_batches
from flame_accel.data.loading.step_batches import StepBatches, StepLayout
from flame_accel.data.loading.stream_state import Identity, StreamState
from flame_accel.data.loading.workers import LoaderOptions
from flame_accel.data.sources.dataset_descriptions import (
    DatasetDescription,
    describe_dataset_without_paths,
)
from flame_accel.data.sources.opening import open_training_and_evaluation
from flame_accel.data.sources.options import (
    data_probs_divided_by_sum,
    evaluation_dataset_options,
    training_dataset_options,
)
from flame_accel.data.stages import EncodedDataset
from flame_accel.data.tokens.encoder import Encoder
from flame_accel.data.tokens.tokenizer import (
    bos_eos_pad_config_kwargs,
    resolve_add_bos,
    tokenizer_identity,
)

LENGTH_SAMPLE = 64
"""Number of documents of a task made on the fly that are measured before a run."""
LONGEST_PROBE = 1 << 24
"""Tokens in the row of a question made on the fly, at most."""
SOURCE_SEED_STRIDE = 1_000_003
"""Difference between the seeds of successive sources of a mixture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """The datasets of a run."""

    training: tuple[EncodedDataset, ...]
    """The datasets of training."""
    shares: tuple[float, ...]
    """Share of each of them in the tokens; their sum is 1."""
    evaluation: Mapping[str, EncodedDataset]
    """The dataset of each validation set, by its name."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of all datasets."""
    add_bos: bool
    """Whether documents start with bos."""

    @property
    def padding_id(self) -> int:
        """The id of the tokenizer's pad token, or of its eos token if it has none."""
        ids = bos_eos_pad_config_kwargs(self.tokenizer)
        pad = ids["eos_token_id"] if ids["pad_token_id"] is None else ids["pad_token_id"]
        assert pad is not None
        return pad

    def __str__(self) -> str:
        if len(self.training) == 1:
            return str(self.training[0])
        pairs = zip(self.shares, self.training, strict=True)
        return "; ".join(f"{share:.1%} {dataset}" for share, dataset in pairs)


def open_data(
    training: TrainingConfig, evaluation: EvaluationConfig, tokenizer: PreTrainedTokenizerBase
) -> RunData:
    """Open the datasets of a run, and keep the documents of training and evaluation apart.

    Raises:
        UserError: a dataset does not open, or was tokenized with another tokenizer; options
            contradict each other; bos is asked for and the tokenizer has none.
    """
    add_bos = resolve_add_bos(tokenizer, training.add_bos)
    sets = evaluation_dataset_options(evaluation, read_like=training)
    sides = open_training_and_evaluation(
        training_dataset_options(training), list(sets.values()), evaluation.held_out_share
    )
    encoder = Encoder(tokenizer, add_bos=add_bos)
    encoded = [source.open_encoded(encoder, held_out) for source, held_out in sides.training]
    for dataset in filter(lambda dataset: is_synthetic(dataset.name), encoded):
        _check_documents_fit_into_rows(dataset, training)
    return RunData(
        training=tuple(encoded),
        shares=data_probs_divided_by_sum(training),
        evaluation={
            name: side.source.open_encoded(encoder, side.held_out)
            for name, side in zip(sets, sides.evaluation, strict=True)
        },
        tokenizer=tokenizer,
        add_bos=add_bos,
    )


def _check_documents_fit_into_rows(dataset: EncodedDataset, training: TrainingConfig) -> None:
    """Checks that no question is cut from its answer, on a sample of the documents of a task.

    Raises:
        UserError: a document is longer than a row.
    """
    sample = dataset.read_in_order(table_sample_size=LENGTH_SAMPLE)
    longest = max(len(made.tokens) for made, _ in sample if isinstance(made, Document))
    context_len = training.context_len or training.seq_len
    if longest > context_len:
        raise UserError(
            f"has documents of {longest} tokens and more, and a row has {context_len}",
            where=f"training.dataset {dataset.name!r}",
            remedy=f"raise --training.seq_len to {longest + longest // 8}, or ask for shorter ones",
        )


def describe_training_data(training: TrainingConfig, data: RunData) -> list[DatasetDescription]:
    """The datasets of training, for the records of a run."""
    columns = zip(training_dataset_options(training), data.training, data.shares, strict=True)
    return [
        describe_dataset_without_paths(options, opened, share=share)
        for options, opened, share in columns
    ]


def describe_evaluation_data(
    training: TrainingConfig, evaluation: EvaluationConfig, data: RunData
) -> DatasetDescription | None:
    """The dataset of `evaluation.dataset`, for the records of a run; None: there is none."""
    options = evaluation_dataset_options(evaluation, read_like=training).get(MAIN_SET)
    if options is None:
        return None
    return describe_dataset_without_paths(options, data.evaluation[MAIN_SET], share=1.0)


def build_lanes(training: TrainingConfig, data: RunData, *, num_lanes: int) -> Lanes:
    """The lanes of a run; `num_lanes` is the number of rows per step."""
    return Lanes(
        sources=[
            dataset.shuffle(
                seed=training.seed + SOURCE_SEED_STRIDE * i,
                stream_block_size=training.shuffle_block,
            )
            for i, dataset in enumerate(data.training)
        ],
        shares=data.shares,
        packing=build_row_packing(training, data.padding_id),
        num_lanes=num_lanes,
        policy=SkipPolicy(training.max_bad_records),
        constant_targets=not training.varlen
        and not any(dataset.conversations for dataset in data.training),
    )


def build_row_packing(training: TrainingConfig, padding_id: int) -> Packing:
    """How documents fill the rows of a run."""
    return Packing(
        seq_len=training.seq_len,
        context_len=(training.context_len or training.seq_len) if training.varlen else None,
        best_fit=training.packing == "best_fit",
        padding=padding_id,
    )


def build_step_batches(
    training: TrainingConfig,
    data: RunData,
    *,
    rank: int,
    world_size: int,
    accumulation: int | None = None,
    state: StreamState | None = None,
) -> StepBatches:
    """The training batches of one data-parallel rank.

    Args:
        training: the section `training` of the options.
        data: the datasets of the run.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        accumulation: micro-batches per step; None: training.gradient_accumulation_steps.
        state: merged state of the checkpoint to resume from; None: from the start.

    Raises:
        UserError: see `StepBatches`.
    """
    layout = StepLayout(
        micro_batch_size=training.batch_size,
        accumulation=accumulation or training.gradient_accumulation_steps,
        rank=rank,
        world_size=world_size,
    )
    return StepBatches(
        build_lanes(training, data, num_lanes=layout.rows_per_step),
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
    max_context: int | None = None,
) -> dict[str, EvaluationBatches]:
    """The batches of each validation set for one rank, by the name of the set.

    Rows are packed as in training. Questions made on the fly have a row each, of the longest
    length: an answer stays with its question, and no model needs boundaries.

    Args:
        training: the section `training` of the options.
        evaluation: the section `evaluation`.
        data: the datasets of the run.
        rank: data-parallel rank of this process.
        world_size: number of data-parallel ranks.
        max_context: length of rows and segments in place of that of training, for sets of texts
            only, in batches of about as many tokens; None: as in training.

    Raises:
        UserError: no document, or records that `training.max_bad_records` does not allow.
    """
    packing = build_row_packing(training, data.padding_id)
    tokens_per_batch = evaluation.batch_size * packing.seq_len
    without_boundaries = replace(packing, context_len=None, best_fit=False)
    # recurrent state cannot be carried into the middle of a row that holds several documents
    one_document = max_context is not None and packing.varlen and evaluation.carry_state
    if max_context is not None:
        # best fit does not cut documents at the ends of rows
        packing = replace(
            packing,
            seq_len=max_context,
            context_len=max_context if packing.varlen else None,
            best_fit=packing.varlen,
        )
    if one_document:
        packing = replace(without_boundaries, seq_len=packing.seq_len)
    return {
        each.name: pack_evaluation_batches(
            _read_with_num_target_bytes(data.evaluation[each.name], data.tokenizer),
            replace(without_boundaries, seq_len=LONGEST_PROBE) if each.is_probe else packing,
            name=f"evaluation set {each.name}, {data.evaluation[each.name].name!r}",
            policy=SkipPolicy(training.max_bad_records),
            tokens_per_batch=tokens_per_batch,
            rank=rank,
            world_size=world_size,
            max_tokens=evaluation.max_tokens,
            one_document_per_row=each.is_probe or one_document,
        )
        for each in evaluation_sets(evaluation)
        if max_context is None or not each.is_probe
    }


def stream_identity(training: TrainingConfig, data: RunData) -> Identity:
    """Everything that must stay the same for cursors to mean the same tokens; no paths."""
    conversations = any(dataset.conversations for dataset in data.training)
    packing = build_row_packing(training, data.padding_id)
    identity: dict[str, int | float | str | list[float] | None] = {
        "training.seed": training.seed,
        "training.seq_len": packing.seq_len,
        "training.varlen": packing.varlen,
        "training.context_len": packing.context_len,
        "training.packing": training.packing,
        # longer documents are skipped
        "training.max_document_bytes": training.max_document_bytes,
        "bos added": data.add_bos,
        "tokenizer": tokenizer_identity(data.tokenizer, with_chat_template=conversations),
    }
    if len(data.training) > 1:
        identity["training.data_probs"] = list(data.shares)
    if any(dataset.num_records is None for dataset in data.training):
        identity["training.streaming"] = True
        identity["training.shuffle_block"] = training.shuffle_block
    for i, dataset in enumerate(data.training):
        which = f" of dataset {i + 1}" if len(data.training) > 1 else ""
        identity[f"documents{which}"] = dataset.num_records
        identity[f"content of the documents{which}"] = dataset.quick_content_fingerprint
        if dataset.held_out is not None:
            identity[f"held out{which}"] = dataset.held_out.share
    return identity


def _read_with_num_target_bytes(
    dataset: EncodedDataset, tokenizer: PreTrainedTokenizerBase
) -> Iterator[EncodedRecord]:
    """What each record gives, with the length in UTF-8 of the text that the loss is computed for.

    That is all of a text, and what the assistant says in a conversation.
    """
    for document, size in dataset.read_in_order():
        if isinstance(document, Document) and document.targets is not None:
            text = tokenizer.decode(
                document.tokens[document.targets].tolist(),
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            assert isinstance(text, str)
            size = len(text.encode("utf-8"))
        yield EncodedRecord(document, size)
