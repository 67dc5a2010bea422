"""The data stream: sources -> documents -> tokens -> packed rows -> batches, and its cursors.

The order in which a run sees tokens depends on the seed, the data and the rows per step alone.
`from_options` builds everything, and `stages` says what one stage hands to the next: `sources`
locates and opens data, `tokens` and `encoded_datasets` make documents of its records, `cache` keeps
them on disk, `lanes` orders them and packs rows, and `loading` makes the batches of steps and their
states.
"""

from flame_accel.data.bad_records import too_many_bad_records_error
from flame_accel.data.from_options import (
    RunData,
    build_evaluation_batches,
    build_step_batches,
    describe_evaluation_data,
    describe_training_data,
    open_data,
)
from flame_accel.data.loading.evaluation_batches import EvaluationBatches
from flame_accel.data.loading.step_batches import StepBatches
from flame_accel.data.loading.workers import explain_lost_workers
from flame_accel.data.tokens.tokenizer import (
    bos_eos_pad_config_kwargs,
    load_tokenizer,
    vocabulary_size,
)

__all__ = [
    "EvaluationBatches",
    "RunData",
    "StepBatches",
    "bos_eos_pad_config_kwargs",
    "build_evaluation_batches",
    "build_step_batches",
    "describe_evaluation_data",
    "describe_training_data",
    "explain_lost_workers",
    "load_tokenizer",
    "open_data",
    "too_many_bad_records_error",
    "vocabulary_size",
]
