"""The data stream: sources -> documents -> tokens -> packed rows -> batches, and its cursors.

The order in which a run sees tokens is a function of (seed, data, rows per step) alone.
``documents`` opens sources, ``tokenizer`` turns a document into tokens, ``order`` permutes each
epoch, ``lanes`` packs rows, ``batches`` hands out optimizer steps, ``state`` is what a checkpoint
keeps, and ``validation`` makes the fixed rows of an evaluation.
"""

from flame_accel.data.from_options import (
    build_batches,
    build_evaluation_batches,
    load_evaluation_documents,
    load_training_documents,
    special_token_ids,
)
from flame_accel.data.loading.batches import StepBatches
from flame_accel.data.loading.evaluation import EvaluationBatches
from flame_accel.data.loading.state import merge_states
from flame_accel.data.sources.documents import Documents
from flame_accel.data.tokens.tokenizer import load_tokenizer, vocabulary_size

__all__ = [
    "Documents",
    "EvaluationBatches",
    "StepBatches",
    "build_batches",
    "build_evaluation_batches",
    "load_evaluation_documents",
    "load_tokenizer",
    "load_training_documents",
    "merge_states",
    "special_token_ids",
    "vocabulary_size",
]
