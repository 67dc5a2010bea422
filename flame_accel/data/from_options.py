"""Documents and batches of a run, from its sections `training` and `evaluation`.

Only names meet here: what a source, a lane or an evaluation is, is said by the modules that do the
work.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data.lanes.lane import Packing
from flame_accel.data.lanes.order import EpochOrder
from flame_accel.data.loading.batches import StepBatches, StepLayout
from flame_accel.data.loading.evaluation import EvaluationBatches, evaluation_batches
from flame_accel.data.loading.workers import LoaderOptions, Stream
from flame_accel.data.sources.documents import Documents, load_documents
from flame_accel.data.tokens.tokenizer import DocumentEncoder, resolve_add_bos, tokenizer_identity


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The ids that a model's config names: `bos_token_id`, `eos_token_id`, `pad_token_id`."""
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name)
        assert value is None or isinstance(value, int)
        ids[name] = value
    return ids


def load_training_documents(training: TrainingConfig) -> Documents:
    """The documents that a run learns from."""
    return load_documents(
        str(training.dataset),
        dataset_name=training.dataset_name,
        dataset_split=training.dataset_split,
        data_dir=training.data_dir,
        data_files=training.data_files,
        text_column=training.text_column,
    )


def load_evaluation_documents(
    evaluation: EvaluationConfig, training: TrainingConfig
) -> Documents | None:
    """The held-out documents, with the training data's text column; None if there are none."""
    if evaluation.dataset is None:
        return None
    return load_documents(
        evaluation.dataset,
        section="evaluation",
        dataset_name=evaluation.dataset_name,
        dataset_split=evaluation.dataset_split,
        data_dir=evaluation.data_dir,
        data_files=evaluation.data_files,
        text_column=training.text_column,
    )


def build_packing(training: TrainingConfig) -> Packing:
    """How documents fill the rows of a run."""
    return Packing(
        seq_len=training.seq_len,
        context_len=(training.context_len or training.seq_len) if training.varlen else None,
    )


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
    packing = build_packing(training)
    layout = StepLayout(
        micro_batch_size=training.batch_size,
        accumulation=accumulation or training.gradient_accumulation_steps,
        rank=rank,
        world_size=world_size,
    )
    stream = Stream(
        encode=DocumentEncoder(documents, tokenizer, add_bos=add_bos),
        order=EpochOrder(num_documents=len(documents), seed=training.seed),
        packing=packing,
        num_lanes=layout.rows_per_step,
    )
    return StepBatches(
        stream,
        layout,
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


def build_evaluation_batches(
    evaluation: EvaluationConfig,
    training: TrainingConfig,
    documents: Documents | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int,
    world_size: int,
) -> EvaluationBatches | None:
    """This rank's batches of the held-out documents, packed as in training."""
    if documents is None:
        return None
    return evaluation_batches(
        documents,
        tokenizer,
        build_packing(training),
        add_bos=resolve_add_bos(tokenizer, training.add_bos),
        batch_size=evaluation.batch_size,
        rank=rank,
        world_size=world_size,
        max_tokens=evaluation.max_tokens,
    )
