"""The training loops that `throughput.py` compares, each run some steps at a time.

A variant keeps its model, optimizer and data between turns, so that a turn pays for steps alone.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch
from device_measures import allocated_bytes, peak_bytes, reset_peak_memory, synchronize
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback
from transformers import TrainingArguments as TrainerArguments

from flame_accel import kernels, observe, parallel, train
from flame_accel.config import parse
from flame_accel.data import build_step_batches
from flame_accel.hub.uploads import HubUploads
from flame_accel.kernels.fused.replace import fused_kernels_disabled
from flame_accel.kernels.packages import (
    KERNEL_PACKAGES,
    install_package_kernels,
    package_kernels_disabled,
)
from flame_accel.models import load_model_config
from flame_accel.stop_signals import StopSignals

LEARNING_RATE, BETAS, WEIGHT_DECAY, MAX_NORM = 3e-4, (0.9, 0.95), 0.1, 1.0
"""The defaults of this project; every variant has them."""
OUR_OPTIONS: dict[str, dict[str, object]] = {
    "ours": {"training.cuda_graphs": "never"},
    "ours_flash_qla": {"training.cuda_graphs": "never", "model.flash_qla": True},
    "ours_fla_kernels": {"training.cuda_graphs": "never", "model.fused_kernels": False},
    "ours_no_packages": {"training.cuda_graphs": "never", "model.flash_attn_4": False},
    "ours_graphs": {"training.cuda_graphs": "always"},
}
"""Variants of our loop, and their options."""
DISTINCT_BATCHES = 24
"""Batches that the plain loop and the Trainer repeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is trained, the same for all variants."""

    config: str
    """Path of the model config."""
    tokenizer: str
    """Folder of the tokenizer."""
    rows: int
    seq_len: int
    varlen: bool
    """Whether the rows are packed into one with `cu_seqlens`."""
    tune_kernels: str
    log_freq: int
    """Steps between two log lines of the variants that log."""


class Turn(NamedTuple):
    """Some steps of a variant."""

    step_seconds: float
    """Mean time of a step."""
    peak_gib: float
    """Peak memory, without what the other variants hold."""


class StepClock:
    """Times the steps of a turn, the first ones left out."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.steps, self.started_at = warmup, 0, 0.0

    def step(self) -> None:
        """Is told after each step; waits for the device when the warm-up ends."""
        self.steps += 1
        if self.steps == self.warmup:
            synchronize()
            self.started_at = time.perf_counter()

    def stop(self) -> float:
        """Waits for the device and returns the mean seconds of the steps after the warm-up."""
        synchronize()
        return (time.perf_counter() - self.started_at) / (self.steps - self.warmup)


class Variant(ABC):
    """A training loop that can be stopped and resumed."""

    own_bytes: int
    """Memory that it holds between its turns: weights, optimizer states, gradients, batches."""
    closing = False
    """Whether there will be no further turn."""

    @abstractmethod
    def run_steps(self, steps: int, after_step: Callable[[], None]) -> None:
        """Trains for some steps, and calls `after_step` after each."""

    def close(self) -> None:
        """Ends what runs in the background."""
        self.closing = True

    def measure_turn(self, *, warmup: int, steps: int) -> Turn:
        """Trains for `warmup + steps` steps, of which the last `steps` are timed."""
        others = allocated_bytes() - self.own_bytes
        reset_peak_memory()
        clock = StepClock(warmup)
        self.run_steps(warmup + steps, clock.step)
        seconds = clock.stop()
        return Turn(seconds, (peak_bytes() - others) / 2**30)


class OursVariant(Variant):
    """The loop of `flame_accel.train`, with options of its own."""

    def __init__(self, case: Case, **options: object) -> None:
        run_folder = Path(mkdtemp())
        self.config = parse_options(case, run_folder, options)
        self.accelerator = parallel.build_accelerator(
            self.config.training,
            self.config.comm,
            run_folder=str(run_folder),
        )
        train.setup_run(self.config, self.accelerator, run_folder)
        kernels.apply_tune_kernels_option(self.config.model.tune_kernels, None, 0)
        model_config = load_model_config(case.config)
        start = train.find_or_download_starting_point(
            self.accelerator, run_folder, self.config.checkpoint, total_steps=10**6
        )
        self.components = train.build_components(self.config, self.accelerator, model_config, start)
        uploads = HubUploads(
            self.accelerator, self.config.hub, run_folder, custom_modules=self.config.model.custom
        )
        self.loop = train.restore_run(
            self.config, self.accelerator, self.components, start, uploads
        )

    def run_steps(self, steps: int, after_step: Callable[[], None]) -> None:
        """Resumes the loop where it stopped."""
        profiler = observe.StepProfiler()
        profiler.recorders.append(after_step)
        last_step = self.loop.state.step + steps
        config = replace(self.config, training=replace(self.config.training, steps=last_step))
        # what another variant has installed does not go away
        options = self.config.model
        install_package_kernels([p for p in KERNEL_PACKAGES if getattr(options, p.option)])
        fused = self.config.model.fused_kernels
        with nullcontext() if fused else fused_kernels_disabled():
            train.train(
                config, self.accelerator, self.components, self.loop, profiler, StopSignals()
            )


class PlainVariant(Variant):
    """A loop as in fla's README."""

    last_loss: torch.Tensor
    """Mean loss of the last batch, on the device."""
    last_gradient_norm: torch.Tensor
    """Before clipping, on the device."""

    def __init__(self, case: Case, *, bf16_residual: bool = False) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build_fp32_model(case).to(self.device)
        if bf16_residual:
            embedding: Any = self.model.get_input_embeddings()
            embedding.register_forward_hook(lambda module, inputs, output: output.bfloat16())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=LEARNING_RATE,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        batches = [
            {name: tensor.to(self.device) for name, tensor in batch.items()}
            for batch in read_batches(case)
        ]
        self.batches: Iterator[dict[str, torch.Tensor]] = cycle(batches)

    def run_steps(self, steps: int, after_step: Callable[[], None]) -> None:
        """Forward, backward, clip, update."""
        with fused_kernels_disabled(), package_kernels_disabled():
            self._run_steps(steps, after_step)

    def _run_steps(self, steps: int, after_step: Callable[[], None]) -> None:
        for host_batch in islice(self.batches, steps):
            batch = {name: tensor.to(self.device) for name, tensor in host_batch.items()}
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.model(**batch).loss
            self.last_loss = loss.detach()
            loss.backward()
            self.last_gradient_norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), MAX_NORM
            )
            self.optimizer.step()
            self.optimizer.zero_grad()
            after_step()


class TrainerVariant(Variant):
    """`transformers.Trainer` in a thread of its own, which waits between two turns."""

    def __init__(self, case: Case) -> None:
        self.turn_begins, self.turn_ends = threading.Semaphore(0), threading.Semaphore(0)
        self.steps_left, self.after_step = 0, lambda: None
        self.error: BaseException | None = None
        arguments = TrainerArguments(
            output_dir=mkdtemp(),
            per_device_train_batch_size=1,
            max_steps=10**6,
            learning_rate=LEARNING_RATE,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
            optim="adamw_torch_fused",
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=case.log_freq,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        self.trainer = Trainer(
            model=build_fp32_model(case),
            args=arguments,
            # an item is a whole batch, so that packing is the same as in the other variants
            train_dataset=read_batches(case) * 10_000,  # pyright: ignore
            data_collator=lambda items: items[0],
            callbacks=[_PauseBetweenTurns(self)],
        )
        self.thread = threading.Thread(target=self._train, daemon=True)

    def run_steps(self, steps: int, after_step: Callable[[], None]) -> None:
        """Lets the thread make some steps."""
        self.steps_left, self.after_step = steps, after_step
        with fused_kernels_disabled(), package_kernels_disabled():
            if self.thread.ident is None:
                self.thread.start()
            else:
                self.turn_begins.release()
            self.turn_ends.acquire()
        if self.error:
            raise self.error

    def close(self) -> None:
        """Ends the thread."""
        super().close()
        self.turn_begins.release()
        self.thread.join()

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self.error = error
            self.turn_ends.release()


class _PauseBetweenTurns(TrainerCallback):
    """Counts the Trainer's steps and holds it when a turn ends."""

    def __init__(self, variant: TrainerVariant) -> None:
        self.variant = variant

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Is called by the Trainer after each step."""
        variant = self.variant
        variant.after_step()
        variant.steps_left -= 1
        if variant.steps_left == 0:
            variant.turn_ends.release()
            variant.turn_begins.acquire()
            control.should_training_stop = variant.closing


def build_variant(name: str, case: Case) -> Variant:
    """Builds a variant and makes its first two steps, which compile and allocate."""
    before = allocated_bytes()
    if name in OUR_OPTIONS:
        variant = OursVariant(case, **OUR_OPTIONS[name])
    elif name == "trainer":
        variant = TrainerVariant(case)
    else:
        variant = PlainVariant(case, bf16_residual=name == "bf16_residual")
    variant.run_steps(2, lambda: None)
    synchronize()
    variant.own_bytes = allocated_bytes() - before
    return variant


def parse_options(case: Case, run_folder: Path, changes: Mapping[str, object] = {}) -> Any:
    """The configuration of this project's run, with changed options."""
    options = {
        "job.dump_folder": run_folder,
        "model.config": case.config,
        "model.tokenizer_path": case.tokenizer,
        "model.tune_kernels": case.tune_kernels,
        "optimizer.lr": LEARNING_RATE,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "training.max_norm": MAX_NORM,
        "training.dataset": "python-stdlib",
        "training.batch_size": case.rows,
        "training.seq_len": case.seq_len,
        "training.steps": 10**6,
        "training.warmup_steps": 10,
        "metrics.log_freq": case.log_freq,
        **changes,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    flags += ["--training.varlen"] if case.varlen else []
    # workers that survive from turn to turn
    flags += ["--training.persistent_workers", "--checkpoint.no_enable_checkpoint"]
    return parse(flags)


def read_batches(case: Case, number: int = DISTINCT_BATCHES) -> list[dict[str, torch.Tensor]]:
    """The first batches of the data, as a model takes them."""
    from flame_accel.data import load_tokenizer, open_data

    config = parse_options(case, Path(mkdtemp()))
    training = replace(config.training, num_workers=0)
    data = open_data(training, config.evaluation, load_tokenizer(case.tokenizer, False))
    stream = iter(build_step_batches(training, data, rank=0, world_size=1))
    batches = [next(stream)[0] for _ in range(number)]
    return [
        {name: value for name, value in batch.items() if name != "num_targets"} for batch in batches
    ]


def build_fp32_model(case: Case) -> Any:
    """The model with fp32 weights, as transformers builds it."""
    torch.manual_seed(42)
    config = AutoConfig.from_pretrained(case.config)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
