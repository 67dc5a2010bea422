"""Options of training itself: model, optimizer, batches and data, parallelism, and precision.

Options of the run folder, logging, checkpoints and validation are in `run_options`.
"""

import os
from dataclasses import dataclass
from typing import Literal

from flame_accel.config.paths import PathList, PathText


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model and its tokenizer."""

    config: PathText | None = None
    """Model config: a JSON file in the Hugging Face format, a folder with a config.json, the name
    of a preset (such as gla_340M), or a name on the Hub (owner/name or owner/name@revision). The
    model starts with random weights unless checkpoint.initial_load_path names weights to load;
    their config is the default."""
    tokenizer_path: PathText | None = None
    """Tokenizer: a folder, a tokenizer.json, a name on the Hub, "byte" for the byte-level tokenizer
    in flame_accel, or "numbers:N" for the numbers below N, the tokens of synthetic tasks. None
    takes the tokenizer in the folder or Hub repository of model.config."""
    norm_type: Literal["layernorm", "np_layernorm", "rmsnorm", "fused_rmsnorm"] | None = None
    """Type of normalization in the blocks and before the head. layernorm has no bias, np_layernorm
    no parameters; fused_rmsnorm is fla's kernel for rmsnorm. None keeps the type of the model
    config."""
    custom: tuple[PathText, ...] = ()
    """Your own architectures: Python packages, files or folders, separated by commas. They are
    imported before the model is built and must register the architectures with transformers."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Implementation of fla's operators. triton needs a GPU, torch runs anywhere; auto takes triton
    if there is a device for it."""
    fused_kernels: bool = True
    """Use this project's Triton kernels for RMS norms, SwiGLU, the layers of Mamba2 and RWKV-7, the
    gradient of the embedding and the loss (without holding the logits of all tokens) instead of
    fla's and PyTorch's. Without effect where fla runs on PyTorch."""
    flash_attn_4: bool = True
    """Compute softmax attention with the package flash-attn-4 where it is installed, the GPU is a
    Hopper, and heads have 64 or 128 channels. The log line "kernels" says whether it serves.
    Without effect where fla runs on PyTorch."""
    flash_qla: bool = False
    """Compute the gated delta rule of training with the package FlashQLA where it is installed, the
    GPU is a Hopper, keys have 128 channels and values a multiple of it. Off, since no long run has
    been made with it, and none with CUDA graphs. Without effect where fla runs on PyTorch."""
    recompute_operators: Literal["auto", "always", "never"] = "auto"
    """Compute again in the backward pass what the operators of KDA and RWKV-7 have computed in the
    forward pass. never keeps it, which is faster, has the same bits and takes more memory (340M:
    0.4 MB a token for KDA, 0.8 for RWKV-7); auto keeps it for RWKV-7 where a GPU has room for it.
    Without effect where fla runs on PyTorch."""
    tune_kernels: Literal["auto", "always", "never"] = "auto"
    """Tune Triton kernels that have no configuration for their shape: one to two minutes at the
    first step. never uses the configuration of the nearest shape instead; auto tunes if the run is
    long enough to earn it back, from about 20 minutes of computation. A restarted run keeps its
    configurations."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model or tokenizer. Only for repositories that you trust.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The optimizer and its learning rate schedule."""

    name: Literal["AdamW", "Adam", "Muon"] = "AdamW"
    """Optimizer. AdamW decays the weights directly, Adam adds the decay to the gradients (L2). Muon
    orthogonalizes the momentum of hidden matrices and uses AdamW for all other parameters, with the
    same learning rate and weight decay; it does not work with DeepSpeed."""
    lr: float = 3e-4
    """Peak learning rate; reached at the end of the warm-up."""
    eps: float = 1e-8
    """Epsilon in the denominator of AdamW and Adam, and of Muon for parameters that are not hidden
    matrices."""
    beta1: float = 0.9
    """Decay rate of the running mean of the gradients."""
    beta2: float = 0.95
    """Decay rate of the running mean of the squared gradients."""
    weight_decay: float = 0.1
    """Weight decay. Norms, biases and the parameters that fla exempts are never decayed; 0 turns it
    off."""
    fused: bool = True
    """Use the fused implementation of AdamW and Adam on devices that have one (CPU, CUDA, XPU,
    MPS). Without it every step waits for the device."""
    scheduler: Literal["wsd", "cosine", "linear"] = "wsd"
    """Learning rate schedule. After the warm-up, wsd stays at the peak and decays during the last
    optimizer.decay_ratio of the steps; cosine and linear decay from the end of the warm-up."""
    decay_ratio: float = 0.1
    """Length of the decay as a fraction of training.steps. Only for wsd; 0 means no decay."""
    decay_type: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay. Only for wsd."""
    min_lr_ratio: float = 0.1
    """Final learning rate as a fraction of optimizer.lr, reached at the last step."""
    early_step_in_backward: bool = False
    """Apply the optimizer during the backward pass, which saves the memory of the gradients. For
    AdamW and Adam on one device or with FSDP2; needs training.max_norm 0, training.skip_nan_inf
    false and training.gradient_accumulation_steps 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Batches, steps, data, parallelism and precision."""

    batch_size: int = 8
    """Number of rows per device in a micro-batch."""
    seq_len: int = 2048
    """Number of tokens per row, at least 2."""
    context_len: int | None = None
    """Maximum length of a document in tokens; longer ones are cut. Needs training.varlen and is at
    most training.seq_len, which None stands for."""
    varlen: bool = False
    """Keep documents apart: neither state nor attention crosses from one document to the next."""
    warmup_steps: int = 200
    """Length of the warm-up in steps; the learning rate rises to optimizer.lr. Normally 1/5 of
    training.steps, and by default that much but at most 200. 0 turns the warm-up off."""
    gradient_accumulation_steps: int = 1
    """Number of micro-batches per step; their gradients are accumulated."""
    steps: int = 10000
    """Total number of training steps (optimizer updates)."""
    max_norm: float = 1.0
    """Maximum norm of the gradients; larger ones are clipped. 0 turns clipping off."""
    skip_nan_inf: bool = True
    """Skip the update if a gradient is NaN or infinite. DeepSpeed always does."""
    max_consecutive_skips: int = 10
    """Number of skipped updates in a row after which the run stops, or goes back if
    training.max_rewinds lets it. 0 means no limit."""
    max_rewinds: int = 0
    """How many times a run may go back to the newest checkpoint from before the skipped updates,
    and on with the data behind them, when training.max_consecutive_skips would stop it. 0 stops.
    Not with DeepSpeed."""
    skip_spike_sigma: float = 0.0
    """Skip the update if its loss or the norm of its gradient is more than so many standard
    deviations above the mean of the last updates (6 is usual). skipped.jsonl lists the batches. 0
    skips none. Not with DeepSpeed."""
    spike_window: int = 128
    """Number of updates with which training.skip_spike_sigma compares; nothing is skipped before
    half as many."""
    watchdog_seconds: int = 600
    """Longest time without progress, in seconds: a run that hangs writes the stacks of all threads
    to the folder watchdog, says which rank is missing, and ends with exit code 75, so that it can
    be started again. Several processes wait at most 3/4 of comm.train_timeout_seconds, since
    collectives give up there. The first two steps, validations, checkpoints and the export may take
    45 minutes, anything else three times as long as the slowest step so far. 0 turns it off."""
    dataset: PathList | None = None
    """Training data (required): a file, a folder, a glob pattern, a token cache made by `prepare`,
    the name of a dataset on the Hub, "python-stdlib" (the sources of Python's standard library), or
    a task made on the fly, such as "synthetic:mqar:pairs=16:length=64". Several datasets are
    separated by commas."""
    dataset_name: str | None = None
    """Name of the dataset's configuration. None takes its default. With several datasets, one name
    for each, separated by commas; an empty one means None."""
    dataset_split: str | None = None
    """Split of the dataset. None takes "train". With several datasets, as training.dataset_name."""
    data_dir: PathList | None = None
    """Folder within the dataset, passed to the datasets library. With several datasets, as
    training.dataset_name."""
    data_files: PathList | None = None
    """Files or glob patterns within the dataset, separated by commas, passed to the datasets
    library. With several datasets, one pattern for each."""
    data_probs: tuple[float, ...] | None = None
    """Share of each dataset in the tokens of the mixture, separated by commas. They are normalized
    to a sum of 1. Required with several datasets."""
    streaming: bool = False
    """Stream the data: read files and Hub datasets sequentially instead of copying them to a table
    first. Documents are shuffled within blocks of training.shuffle_block."""
    shuffle_block: int = 10_000
    """Number of documents in a block of a stream, within which they are shuffled. 1 keeps the order
    of the stream."""
    text_column: str | None = None
    """Column with the text, or with the messages of a conversation. None takes the first of text,
    content and messages that exists."""
    packing: Literal["sequential", "best_fit"] = "sequential"
    """How documents fill rows. sequential concatenates them and cuts at the ends of rows. best_fit
    cuts only documents longer than a row, places each piece where it fits best and pads the rest
    of a row; it needs training.varlen."""
    add_bos: Literal["auto", "always", "never"] = "auto"
    """Start documents with the tokenizer's bos token. auto does what the tokenizer itself does."""
    num_workers: int = 1
    """Number of data loading subprocesses per device. 0 loads the data in the main process."""
    prefetch_factor: int = 2
    """Number of batches that each worker loads in advance. 2 keeps 2 * training.num_workers batches
    ready."""
    pin_memory: bool = True
    """Load batches into pinned memory, which speeds up the copy to a GPU."""
    persistent_workers: bool = False
    """Keep the worker processes alive from one epoch to the next."""
    max_bad_records: int | None = None
    """Maximum number of records to skip because they are damaged or have no text; one more stops
    the run. None skips records without text but stops at a damaged one."""
    max_document_bytes: int = 67_108_864
    """Maximum size of a document's text in bytes. Longer documents count as damaged."""
    data_parallel_replicate_degree: int | None = None
    """Number of replicas of the weights. Above 1 with training.data_parallel_shard_degree above 1:
    HSDP (hybrid sharded data parallelism); above 1 alone: DDP (distributed data parallelism). 1
    disables it; None leaves it to the Accelerate config."""
    data_parallel_shard_degree: int | None = None
    """Number of devices over which one copy of the weights is sharded. Above 1 with
    training.data_parallel_replicate_degree above 1: HSDP; above 1 alone: FSDP (fully sharded data
    parallelism). -1 takes all remaining devices, 1 disables it; None leaves it to the Accelerate
    config."""
    enable_cpu_offload: bool = False
    """Keep parameters, gradients and optimizer states in CPU memory under FSDP and ZeRO."""
    tensor_parallel_degree: int = 1
    """Number of devices over which each matrix is split (tensor parallelism). 1 disables it, unless
    the Accelerate config asks for it."""
    disable_loss_parallel: bool = False
    """Compute the loss on gathered logits under tensor parallelism, instead of on each device's
    part of the vocabulary."""
    mixed_precision_param: Literal["bfloat16", "float32"] | None = None
    """Dtype of the parameters in forward and backward under FSDP mixed precision. Takes effect if
    the weights are sharded over more than one device. None leaves it to the Accelerate config, and
    is bfloat16 if that does not say."""
    mixed_precision_reduce: Literal["float32"] = "float32"
    """Dtype of gradient reduction under FSDP mixed precision. Takes effect if the weights are
    sharded over more than one device."""
    residual_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the residual stream, which runs from block to block, under bf16 mixed precision with
    fp32 weights. bfloat16 is faster and saves about a fifth of the memory. Under FSDP the stream
    has the dtype of training.mixed_precision_param; a model whose config sets residual_in_fp32
    keeps fp32."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """When FSDP frees the gathered weights of a block. always frees them after the forward pass and
    saves the most memory; never keeps them for the backward pass and saves a gather; default frees
    all but the last block, with which the backward pass begins."""
    compile: bool = False
    """Compile the model: each block with torch.compile, around fla's kernels. The first step takes
    longer."""
    cuda_graphs: Literal["auto", "always", "never"] = "auto"
    """Replay the forward and backward pass of a micro-batch as a CUDA graph, which spares the host
    nearly all launches; on one GPU, without activation checkpointing. Packed documents are padded
    with empty ones to a power of two. auto does so for the model types that were measured (GLA,
    Transformer, DeltaNet, Gated DeltaNet, KDA, Mamba2, RWKV-7)."""
    gc_freq: int = 50
    """Interval between runs of Python's garbage collector, in steps, on all ranks at once. 0 leaves
    collection to Python."""
    vocab_multiple: int = 1
    """Round the vocabulary of a new model, which is the tokenizer's, up to a multiple of this
    number: some GPUs multiply matrices faster with 64 or 128. Weights that a run starts from keep
    their number of rows."""
    seed: int = 42
    """Random seed: for the initial weights, the order of the data, and dropout."""
    deterministic: bool = False
    """Use deterministic algorithms wherever possible. May be slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationCheckpointConfig:
    """Recompute activations in the backward pass instead of storing them, to save memory."""

    mode: Literal["none", "full", "selective"] = "none"
    """Activations to recompute: none, those of every layer, or a selection."""
    selective_ac_option: str = "2"
    """What mode selective recomputes. A number n recomputes every n-th layer; "op" recomputes all
    operators but the expensive ones, which are fla's sequence mixers and softmax attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8Config:
    """Matrix multiplication in 8-bit floats (float8)."""

    enable_fsdp_float8_all_gather: bool = False
    """Gather sharded weights in float8 instead of bfloat16. Only with float8.recipe_name
    tensorwise."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """Compute the scales of all sharded weights in one all-reduce after the update. Only with
    float8.enable_fsdp_float8_all_gather."""
    force_recompute_fp8_weight_in_bwd: bool = False
    """Cast the weights to float8 again in the backward pass instead of keeping the cast. Current
    torchao versions always do."""
    recipe_name: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None = None
    """How the large matrix products are scaled. tensorwise is the fastest; rowwise has a scale per
    row; rowwise_with_gw_hp also computes weight gradients in high precision and is the most
    accurate. Needs a GPU of compute capability 8.9 or above. None turns float8 off."""
    emulate: bool = False
    """Emulate float8 rounding without float8 hardware. Slow, but runs anywhere, for trying out a
    recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentalConfig:
    """Options that flame calls experimental."""

    context_parallel_degree: int = 1
    """Number of devices over which a sequence is split (context parallelism). 1 disables it."""
    pipeline_parallel_degree: int = 1
    """Number of devices over which the layers are split (pipeline parallelism). 1 disables it."""
    enable_async_tensor_parallel: bool = False
    """Overlap the communication of tensor parallelism with its matrix products."""
    enable_compiled_autograd: bool = False
    """Compile the backward pass as one graph."""


PER_DATASET = ("dataset_name", "dataset_split", "data_dir", "data_files")
"""Options of `training` that hold one entry for each of several datasets."""


def dataset_names(training: TrainingConfig) -> list[str]:
    """The datasets in `training.dataset`; an existing path is one, even if it has a comma."""
    if training.dataset is None:
        return []
    if os.path.exists(training.dataset):
        return [training.dataset]
    return [name.strip() for name in training.dataset.split(",")]


def split_per_dataset_option(training: TrainingConfig, option: str) -> list[str | None]:
    """The entries of one of the `PER_DATASET` options, None where one is empty."""
    value = getattr(training, option)
    count = len(dataset_names(training))
    if value is None or count == 1:
        return [value] * count
    return [entry.strip() or None for entry in value.split(",")]
