"""What `job.dry_run` finds out about a run, without training and without writing anything.

`report` prints it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flame_accel import data, models
from flame_accel.config import Config, to_toml
from flame_accel.data.from_options import RunData, build_lanes
from flame_accel.data.row_formatting import RowVocabulary, format_rows
from flame_accel.data.row_tracing import trace_first_rows
from flame_accel.diagnosis.dry_run.memory import (
    DeviceMemory,
    ModelSizes,
    add_states_and_shard,
    find_largest_micro_batch,
    why_memory_is_unknown,
)
from flame_accel.diagnosis.dry_run.parameters import count_parameters_by_part
from flame_accel.diagnosis.dry_run.rehearsal import (
    PassMemory,
    PassOptions,
    prepare_for_rehearsal,
    rehearsal_mode,
    rehearse_pass,
)
from flame_accel.diagnosis.dry_run.run_time import (
    GPU_MEMORY_GIB,
    Speed,
    estimate_speed,
    measured_gpus,
)
from flame_accel.diagnosis.dry_run.schedule_plot import sample_steps
from flame_accel.models.norms import base_model_type
from flame_accel.parallel.blocks import find_blocks
from flame_accel.parallel.topology import Topology, resolve_engine_mesh_and_precision
from flame_accel.training import learning_rate
from flame_accel.training.pass_graphs import GRAPHED_MODELS

UNKNOWN_GPU_BYTES = 80 * 2**30
"""Taken for a GPU whose memory is not known, where operators keep what fits."""
MOST_REHEARSED_TOKENS = 2**20
"""Of a micro-batch: the loss loops over chunks of tokens, which takes time here too."""
UNREHEARSABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)
"""Errors of a pass that needs the values of tensors."""
SHOWN_ROWS = 2
"""Rows of step 1 that are shown."""


class Device(NamedTuple):
    """What the run is estimated for."""

    name: str
    """Of a GPU, as PyTorch gives it."""
    memory_bytes: int | None
    """None if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceEstimate:
    """A run on devices of one kind."""

    device: Device
    memory: DeviceMemory | None
    """None if it is not estimated."""
    no_memory_reason: str
    """Why it is not; empty where it is."""
    largest_micro_batch: int | None
    """Rows; None if the device's memory is unknown."""
    speed: Speed | None
    """Of one device; None if nothing is known."""
    seconds: float | None
    """Of the whole run, without evaluation, saves and start."""
    cost: float | None
    """In the currency of `job.gpu_hour_price`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run would be."""

    options: str
    """As a run file: all of them."""
    changed_options: str
    """As a run file: those that have not their defaults."""
    model_type: str
    parameters: dict[str, int]
    """By part; a tied one counts once."""
    topology: Topology
    tokens_per_step: int
    tokens: int
    flops_per_token: float | None
    """Model FLOPs, forward and backward without recomputation; None without a formula."""
    graphs: bool
    """Whether passes run as CUDA graphs on one GPU."""
    rates: list[tuple[int, float]]
    """Some updates, from 0, and their learning rates."""
    data: str
    first_rows: list[str]
    estimates: list[DeviceEstimate]


def plan_run(config: Config) -> Plan:
    """Finds out what a run would be.

    Raises:
        UserError: The run would end with it too: its data, model or launch.
    """
    training = config.training
    topology = resolve_engine_mesh_and_precision(
        training, os.environ, num_devices=_count_devices_or_none_for_cpu()
    )
    models.register_models(config.model.custom)
    model_config = models.load_model_config(
        str(config.model.config),
        trust_remote_code=config.model.trust_remote_code,
        custom_modules=config.model.custom,
    )
    tokenizer = data.load_tokenizer(
        config.model.tokenizer_path or str(config.model.config), config.model.trust_remote_code
    )
    run_data = data.open_data(training, config.evaluation, tokenizer)
    dp_ranks = topology.degrees.dp_replicate * topology.degrees.dp_shard
    rows_per_step = training.batch_size * training.gradient_accumulation_steps * dp_ranks
    tokens_per_step = rows_per_step * training.seq_len
    total_tokens = tokens_per_step * training.steps
    graphs = _runs_passes_as_graphs(config, topology, model_config)
    with rehearsal_mode(config.model):
        model = _build_model(config, model_config, tokenizer)
        parameters = count_parameters_by_part(model)
        flops = models.train_flops_per_token(model, training.context_len or training.seq_len)
        rehearsal = _Rehearsal(config, model, topology, keeps_gradients=graphs)
        estimates = [
            _estimate_on_device(config, device, rehearsal, topology, flops, total_tokens)
            for device in _devices_to_estimate_for(config)
        ]
    steps = sample_steps(training.steps)
    rate = partial(
        learning_rate,
        optimizer=config.optimizer,
        total_steps=training.steps,
        warmup_steps=training.warmup_steps,
    )
    return Plan(
        options=to_toml(config),
        changed_options=to_toml(config, only_changed=True),
        model_type=model_config.model_type,
        parameters=parameters,
        topology=topology,
        tokens_per_step=tokens_per_step,
        tokens=total_tokens,
        flops_per_token=flops,
        graphs=graphs,
        rates=[(step, rate(step)) for step in steps],
        data=str(run_data),
        first_rows=_format_first_rows(config, run_data, rows_per_step),
        estimates=estimates,
    )


class _Rehearsal:
    """Passes of one model, each size once."""

    def __init__(
        self, config: Config, model: PreTrainedModel, topology: Topology, *, keeps_gradients: bool
    ) -> None:
        training = config.training
        document = (training.context_len or training.seq_len) if training.varlen else None
        self.model = model
        self.topology = topology
        self.sizes = _measure_model(model, config)
        self.adapts_to_memory = base_model_type(model.config) == "rwkv7"
        """Whether it keeps more where there is room, so that more rows may take less."""
        self.options = PassOptions(
            seq_len=training.seq_len,
            document_tokens=document,
            bf16=topology.engine != "fsdp2",
            bf16_stream=training.residual_dtype == "bfloat16",
            keeps_gradients=keeps_gradients or topology.engine == "ddp",
            gpu_memory_bytes=UNKNOWN_GPU_BYTES,
        )
        self.passes: dict[tuple[int, int], PassMemory] = {}
        self.not_possible = why_memory_is_unknown(topology, config.model.kernels)
        if not self.not_possible:
            prepare_for_rehearsal(model, self.options, config.activation_checkpoint)

    def estimate(self, rows: int, gpu_memory_bytes: int) -> DeviceMemory:
        """The memory of a device with micro-batches of `rows` rows."""
        key = rows, gpu_memory_bytes if self.adapts_to_memory else 0
        if key not in self.passes:
            options = replace(self.options, gpu_memory_bytes=gpu_memory_bytes)
            try:
                self.passes[key] = rehearse_pass(self.model, rows, options)
            except UNREHEARSABLE:
                if options.document_tokens is None:
                    raise
                # some code computes with boundaries; rows without any take about as much
                self.options = replace(self.options, document_tokens=None)
                return self.estimate(rows, gpu_memory_bytes)
        return add_states_and_shard(self.passes[key], self.sizes, self.topology)


def _estimate_on_device(
    config: Config,
    device: Device,
    rehearsal: _Rehearsal,
    topology: Topology,
    flops: float | None,
    total_tokens: int,
) -> DeviceEstimate:
    rows = config.training.batch_size
    reason, memory, largest = rehearsal.not_possible, None, None
    of_device = device.memory_bytes or UNKNOWN_GPU_BYTES
    if not reason:
        try:
            memory = rehearsal.estimate(rows, of_device)
            if device.memory_bytes is not None:
                largest = find_largest_micro_batch(
                    lambda n: rehearsal.estimate(n, of_device).total,
                    of_device,
                    # from where it keeps less
                    guess=4 * rows if rehearsal.adapts_to_memory else rows,
                    most_rows=max(MOST_REHEARSED_TOKENS // config.training.seq_len, 1),
                )
        except UNREHEARSABLE as error:
            reason = f"this model reads values of its tensors, so that it cannot be told: {error}"
    model_type = base_model_type(rehearsal.model.config)
    speed = estimate_speed(device.name, model_type, flops) if flops else None
    seconds = cost = None
    if speed is not None:
        seconds = total_tokens / (speed.tokens_per_second * topology.world_size)
        if config.job.gpu_hour_price:
            cost = seconds / 3600 * topology.world_size * config.job.gpu_hour_price
    return DeviceEstimate(
        device=device,
        memory=memory,
        no_memory_reason=reason,
        largest_micro_batch=largest,
        speed=speed,
        seconds=seconds,
        cost=cost,
    )


def _count_devices_or_none_for_cpu() -> int | None:
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if on_cpu or not torch.accelerator.is_available():
        return None
    return torch.accelerator.device_count()


def _devices_to_estimate_for(config: Config) -> Sequence[Device]:
    """The GPU that the options name, that of this machine, or those that were measured."""
    asked = config.job.dry_run_gpu
    if not asked and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return [Device(torch.cuda.get_device_name(0), properties.total_memory)]
    names = [asked] if asked else measured_gpus()
    gib = GPU_MEMORY_GIB
    return [Device(name, int(gib[name] * 2**30) if name in gib else None) for name in names]


def _runs_passes_as_graphs(config: Config, topology: Topology, model: PreTrainedConfig) -> bool:
    """As `training.pass_graphs` decides it, on a GPU."""
    training = config.training
    possible = (
        topology.engine == "single"
        and config.activation_checkpoint.mode == "none"
        and not config.optimizer.early_step_in_backward
    )
    tried = model.model_type in GRAPHED_MODELS and not training.compile
    return (
        possible and training.cuda_graphs != "never" and (training.cuda_graphs == "always" or tried)
    )


def _build_model(
    config: Config, model_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    training = config.training
    return models.build_model(
        model_config,
        vocabulary_size=models.padded_or_stored_embedding_rows_or_raise(
            data.vocabulary_size(tokenizer), multiple=training.vocab_multiple, stored_rows=None
        ),
        **data.bos_eos_pad_config_kwargs(tokenizer),
        norm_type=config.model.norm_type,
        seed=training.seed,
        trust_remote_code=config.model.trust_remote_code,
        trained_length=training.context_len or training.seq_len,
    )


def _measure_model(model: PreTrainedModel, config: Config) -> ModelSizes:
    def numel(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    blocks = find_blocks(model, needed_by_option="job.dry_run")
    trainable = [p for p in model.parameters() if p.requires_grad]
    states = 2 * sum(p.numel() for p in trainable)
    if config.optimizer.name == "Muon":
        # one momentum for each matrix of the blocks
        matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
        states -= sum(p.numel() for p in matrices if p.requires_grad)
    return ModelSizes(
        total=numel(model), optimizer_states=states, largest_block=max(map(numel, blocks))
    )


def _format_first_rows(config: Config, run_data: RunData, rows_per_step: int) -> list[str]:
    stream = build_lanes(config.training, run_data, num_lanes=rows_per_step)
    stream.check_enough_records_if_known()
    lanes = range(min(SHOWN_ROWS, rows_per_step))
    rows = trace_first_rows(stream, lanes, 1, lambda skipped: None)
    ids = data.bos_eos_pad_config_kwargs(run_data.tokenizer)
    assert ids["eos_token_id"] is not None
    decode = partial(
        run_data.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    names = [dataset.name for dataset in run_data.training]
    bos = ids["bos_token_id"] if run_data.add_bos else None
    vocabulary = RowVocabulary(names, lambda tokens: str(decode(tokens)), bos, ids["eos_token_id"])
    return list(format_rows(rows, vocabulary))
