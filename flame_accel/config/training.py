"""Options of training proper: batches, steps, data, and how the work is spread over devices."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Batches, steps, data, and how the work is spread over devices."""

    batch_size: int = 8
    """Rows per device and micro-batch."""
    seq_len: int = 2048
    """Tokens per row; at least 2."""
    context_len: int | None = None
    """Cut documents at so many tokens; needs training.varlen, at most training.seq_len. None means
    training.seq_len."""
    varlen: bool = False
    """Keep documents apart: no state or attention crosses from one document into the next."""
    warmup_steps: int = 200
    """Steps in which the learning rate rises to optimizer.lr, normally 1/5 of training.steps. 0
    turns the warm-up off."""
    gradient_accumulation_steps: int = 1
    """Number of micro-batches whose gradients are accumulated before the parameters are updated."""
    steps: int = 10000
    """How many training steps (updates of the parameters) to run."""
    max_norm: float = 1.0
    """Largest norm of the gradients; longer ones are clipped to it. 0 turns clipping off."""
    skip_nan_inf: bool = True
    """Skip the update when a gradient is NaN or infinite; DeepSpeed always does."""
    max_consecutive_skips: int = 10
    """Stop the run after so many skipped updates in a row. 0 means no limit."""
    dataset: str | None = None
    """Training data, required: "python-stdlib" (ships with Python), a file, a folder, a glob
    pattern, a token cache made by prepare, or the name of a dataset for datasets; several
    separated by commas."""
    dataset_name: str | None = None
    """Name of the dataset's configuration; None takes its default. With several datasets one for
    each, separated by commas; an empty one means None."""
    dataset_split: str | None = None
    """Split of the dataset to use; None means train. Several as training.dataset_name."""
    data_dir: str | None = None
    """Folder within the dataset, passed on to datasets. Several as training.dataset_name."""
    data_files: str | None = None
    """Files or patterns within the dataset, separated by commas, passed on to datasets; with
    several datasets one pattern for each."""
    data_probs: tuple[float, ...] | None = None
    """Share of each dataset in the tokens of the mixture, separated by commas; they are divided by
    their sum. Required with several datasets."""
    streaming: bool = False
    """Read files and datasets of the Hub as they come instead of copying them into a table first;
    documents are shuffled within blocks."""
    shuffle_block: int = 10_000
    """Number of documents in a block of a stream that are shuffled among each other. 1 keeps the
    order of the stream."""
    text_column: str | None = None
    """Column that holds the text, or the messages of a conversation; None takes text, else content,
    else messages."""
    packing: Literal["sequential", "best_fit"] = "sequential"
    """How documents fill rows: one after the other, cut where a row ends; or cut only where longer
    than a row, and each piece into the row where it fits best, the rest of a row being padding
    (needs training.varlen)."""
    add_bos: Literal["auto", "always", "never"] = "auto"
    """Start documents with the tokenizer's bos token; auto does as the tokenizer itself does."""
    num_workers: int = 1
    """Number of subprocesses that load data. 0 loads the data in the main process."""
    prefetch_factor: int = 2
    """Number of batches that each worker loads in advance: 2 keeps 2 * training.num_workers
    batches ready."""
    pin_memory: bool = True
    """Load batches into pinned memory, from which they are copied to a GPU faster."""
    persistent_workers: bool = False
    """Keep the worker processes alive from one pass over the data to the next."""
    max_bad_records: int | None = None
    """Pass over up to so many records that are damaged or have no text; one more stops the run, 0
    at the first. None: those without text are passed over, a damaged one stops the run."""
    max_document_bytes: int = 67_108_864
    """A longer document, in bytes of its text, counts as damaged."""
    data_parallel_replicate_degree: int | None = None
    """Number of replicas of the weights. Above 1 with training.data_parallel_shard_degree above 1:
    HSDP (hybrid sharded data parallelism); above 1 alone: DDP (distributed data parallelism). 1
    means disabled, None as the launch says."""
    data_parallel_shard_degree: int | None = None
    """Number of devices that share (shard) one copy of the weights. Above 1 with
    training.data_parallel_replicate_degree above 1: HSDP; above 1 alone: FSDP (fully sharded data
    parallelism). -1 takes the devices that are left over, 1 means disabled, None as the launch
    says."""
    enable_cpu_offload: bool = False
    """Keep parameters, gradients and optimizer states in CPU memory under FSDP and ZeRO."""
    tensor_parallel_degree: int = 1
    """Tensor parallelism: number of devices that share each matrix. 1 means disabled, unless the
    launch asks for it."""
    disable_loss_parallel: bool = False
    """Compute the loss on gathered logits when tensor parallelism is on, instead of in parallel."""
    mixed_precision_param: Literal["bfloat16", "float32"] | None = None
    """Type of the parameters in forward and backward under mixed precision with FSDP; takes effect
    when the weights are sharded over more than one device. None as the launch says, and bfloat16
    where it says nothing."""
    mixed_precision_reduce: Literal["float32"] = "float32"
    """Type of the gradients when they are summed over devices under mixed precision with FSDP;
    takes effect when the weights are sharded over more than one device."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """When FSDP frees gathered weights that the backward pass needs again: always after their
    forward, which saves the most memory; never before their backward, which saves a gathering;
    default frees all but what the backward pass begins with."""
    compile: bool = False
    """Compile each block of the model with torch.compile, around fla's kernels; the first step
    takes longer."""
    gc_freq: int = 50
    """Collect Python's garbage every so many steps, on all ranks at once. 0 leaves Python's own
    collector on."""
    seed: int = 42
    """Base random seed of the run: initial weights, order of the data, dropout."""
    deterministic: bool = False
    """Use deterministic algorithms wherever possible; may be slower."""
