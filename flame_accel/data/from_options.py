"""Documents and batches of a run, from its sections `training` and `evaluation`.

Only names meet here: what a source, a lane or an evaluation is, is said by the modules that do the work.
"""

from transformers import PreTrainedTokenizerBase

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data.documents import Documents, load_documents
from flame_accel.data.lanes import Packing
from flame_accel.data.tokenizer import resolve_add_bos
from flame_accel.data.validation import EvaluationBatches, evaluation_batches


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
    """The held-out documents; None if the run has none. Their text column is the training data's."""
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


def build_evaluation_batches(
    evaluation: EvaluationConfig,
    training: TrainingConfig,
    documents: Documents | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int,
    world_size: int,
) -> EvaluationBatches | None:
    """This rank's batches of the held-out documents, packed as in training; None without documents."""
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
