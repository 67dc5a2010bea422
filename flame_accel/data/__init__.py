"""The data stream: sources -> documents -> tokens -> packed rows -> batches, and its cursors.

The order in which a run sees tokens is a function of (seed, data, rows per step) alone.
``parts`` says what the rooms hand to one another: ``sources`` opens data and reads records,
``tokens`` makes documents of them, ``cache`` keeps those, ``lanes`` decides what comes next and
packs rows, and ``loading`` hands out optimizer steps and keeps what a checkpoint needs.
"""

from flame_accel.data.bad_records import too_many_bad_records
from flame_accel.data.from_options import (
    RunData,
    build_batches,
    build_evaluation_batches,
    open_data,
    special_token_ids,
)
from flame_accel.data.loading.evaluation_batches import EvaluationBatches
from flame_accel.data.loading.step_batches import StepBatches
from flame_accel.data.loading.stream_state import merge_states
from flame_accel.data.tokens.tokenizer import load_tokenizer, vocabulary_size

__all__ = [
    "EvaluationBatches",
    "RunData",
    "StepBatches",
    "build_batches",
    "build_evaluation_batches",
    "load_tokenizer",
    "merge_states",
    "open_data",
    "special_token_ids",
    "too_many_bad_records",
    "vocabulary_size",
]
