"""The evaluation of a run at a step: every validation set, its metrics, and its loss by position.

A set is read in `validate` and its figures are made in `metric_modules`; records are written in
`observe`. Nothing here changes what training goes on with (`evaluation_mode`).
"""

from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from torch import nn

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.config.evaluation_sets import MAIN_SET, EvaluationSet, evaluation_sets
from flame_accel.data import EvaluationBatches, RunData, build_evaluation_batches
from flame_accel.evaluation.evaluation_mode import evaluation_mode
from flame_accel.evaluation.generate import GenerationSettings
from flame_accel.evaluation.metric_modules import MetricModule
from flame_accel.evaluation.validate import PassResult, evaluate_rows
from flame_accel.evaluation.validation_samples import ValidationSamples
from flame_accel.observe import get_logger
from flame_accel.observe.evaluations_file import Evaluation
from flame_accel.parallel import dp_rank, dp_size, run_on_main_and_broadcast

RANGES_PER_TRAINED_LENGTH = 8
"""Ranges of positions for which the loss is reported, in as many tokens as a context of training
has."""
log = get_logger()


class EvaluationResult(NamedTuple):
    """What was found at a step, the same on every rank."""

    record: dict[str, float]
    """For metrics.jsonl: `eval/METRIC` of the main set, `eval/NAME/METRIC` of the others."""
    evaluations: list[Evaluation]
    """For evaluations.jsonl."""


class Evaluator:
    """Evaluates a run's model on its validation sets. Every rank has one, and all call it alike.

    Args:
        accelerator: The run's accelerator.
        options: The section evaluation.
        training: The section training.
        run_data: The datasets of the run.
        may_carry_state: Whether the model is known to read in pieces what it reads as a whole.

    Raises:
        UserError: A metric cannot be loaded, a set has no document, or prompts cannot be read.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: EvaluationConfig,
        training: TrainingConfig,
        run_data: RunData,
        *,
        may_carry_state: bool,
    ) -> None:
        self._accelerator = accelerator
        self._sets = evaluation_sets(options)
        rank, world_size = dp_rank(accelerator), dp_size(accelerator)

        def build_batches(max_context: int | None) -> dict[str, EvaluationBatches]:
            return build_evaluation_batches(
                training,
                options,
                run_data,
                rank=rank,
                world_size=world_size,
                max_context=max_context,
            )

        self._batches = build_batches(None)
        self._long_batches = build_batches(options.max_context) if options.max_context else {}
        trained_length = (training.varlen and training.context_len) or training.seq_len
        self._position_step = max(1, trained_length // RANGES_PER_TRAINED_LENGTH)
        self._piece_length = training.seq_len if options.carry_state else None
        if options.carry_state and not may_carry_state:
            self._warn_of_one_piece()
        self._modules: dict[str, MetricModule] = {}
        self._names_given_twice: set[str] = set()
        self._names_by_set = {each.name: _metric_names(each, options) for each in self._sets}
        self._token_metrics = self._load_metrics_on_main()
        self._samples = None
        if options.prompts is not None and options.sample_tokens:
            settings = GenerationSettings(
                max_new_tokens=options.sample_tokens,
                temperature=options.sample_temperature,
                seed=training.seed,
            )
            self._samples = ValidationSamples(
                accelerator, run_data.tokenizer, Path(options.prompts), settings
            )

    @property
    def num_batches(self) -> int:
        """Batches of this rank in an evaluation."""
        return sum(map(len, (*self._batches.values(), *self._long_batches.values())))

    @property
    def longest_row(self) -> int:
        """Tokens in the longest row of any set; 0 without sets."""
        batches = (*self._batches.values(), *self._long_batches.values())
        return max((each.row_length for each in batches), default=0)

    def _load_metrics_on_main(self) -> set[str]:
        """Loads all metrics; returns the names of those that need the tokens of all ranks."""
        names = dict.fromkeys(name for names in self._names_by_set.values() for name in names)

        def load() -> set[str]:
            self._modules = {name: MetricModule(name) for name in names}
            return {name for name, module in self._modules.items() if module.needs_tokens}

        return run_on_main_and_broadcast(self._accelerator, load)

    def _warn_once_of_same_names(self, names: Set[str], metric: str) -> None:
        if new := names - self._names_given_twice:
            log.warning(
                "the metric %s has the same names as one before it, whose figures are kept: %s",
                *(metric, ", ".join(sorted(new))),
            )
            self._names_given_twice |= new

    def _warn_of_one_piece(self) -> None:
        log.warning(
            "evaluation.carry_state: this model cannot read rows in pieces: it reads them whole"
        )
        self._piece_length = None

    def evaluate(
        self,
        model: nn.Module,
        *,
        step: int,
        tokens: int,
        after_batch: Callable[[], None] = lambda: None,
    ) -> EvaluationResult:
        """Evaluates the model on every set. Every rank must call it.

        Args:
            model: The model as Accelerate prepared it.
            step: Number of completed steps.
            tokens: Number of tokens that these steps read.
            after_batch: Called after each batch, which the device may still compute.
        """
        with evaluation_mode(model):
            evaluations = [
                self._evaluate_set(model, each, step, tokens, after_batch) for each in self._sets
            ]
            samples = self._samples.generate(model, step=step) if self._samples else []
        if samples:
            if not evaluations:
                evaluations = [
                    Evaluation(step=step, tokens=tokens, kind="set", name=MAIN_SET, metrics={})
                ]
            # they belong to no set in particular
            evaluations[0] = replace(evaluations[0], samples=samples)
        record: dict[str, float] = {}
        for found in evaluations:
            prefix = "eval/" if found.name == MAIN_SET else f"eval/{found.name}/"
            record |= {f"{prefix}{name}": value for name, value in found.metrics.items()}
            if found.name != MAIN_SET:
                figures = "  ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
                log.info("step %d: evaluation set %s: %s", step, found.name, figures)
        return EvaluationResult(record, evaluations)

    def _evaluate_set(
        self,
        model: nn.Module,
        evaluation_set: EvaluationSet,
        step: int,
        tokens: int,
        after_batch: Callable[[], None],
    ) -> Evaluation:
        name, batches = evaluation_set.name, self._batches[evaluation_set.name]
        metrics = self._names_by_set[name]
        predictions: list[int] = []
        references: list[int] = []

        def take_tokens(predicted: list[int], wanted: list[int]) -> None:
            predictions.extend(predicted)
            references.extend(wanted)

        found = evaluate_rows(
            self._accelerator,
            model,
            batches,
            position_step=self._position_step,
            take_tokens=take_tokens if self._token_metrics.intersection(metrics) else None,
            after_batch=after_batch,
        )
        columns = found.rows._asdict() | {
            "bytes": [batches.num_target_bytes, *([0] * (len(found.rows.nats) - 1))],
            "predictions": predictions,
            "references": references,
        }

        def compute() -> dict[str, float]:
            figures: dict[str, float] = {}
            for metric in metrics:
                more = self._modules[metric].compute(columns)
                self._warn_once_of_same_names(more.keys() & figures.keys(), metric)
                figures |= {name: more[name] for name in more if name not in figures}
            return figures

        figures = run_on_main_and_broadcast(self._accelerator, compute)
        longer = self._evaluate_long_rows(model, name, after_batch)
        by_position = found.by_position if longer is None else longer.by_position
        return Evaluation(
            step=step,
            tokens=tokens,
            kind="probe" if evaluation_set.is_probe else "set",
            name=name,
            metrics=figures,
            by_position=by_position._asdict(),
            details={
                "targets": sum(found.rows.targets),
                "carried_state": longer is not None and longer.carried,
            },
        )

    def _evaluate_long_rows(
        self, model: nn.Module, name: str, after_batch: Callable[[], None]
    ) -> PassResult | None:
        """The pass over rows of `evaluation.max_context`; None if there is none for this set."""
        if name not in self._long_batches:
            return None
        found = evaluate_rows(
            self._accelerator,
            model,
            self._long_batches[name],
            position_step=self._position_step,
            piece_length=self._piece_length,
            after_batch=after_batch,
        )
        if self._piece_length is not None and not found.carried:
            self._warn_of_one_piece()
        return found


def _metric_names(evaluation_set: EvaluationSet, options: EvaluationConfig) -> list[str]:
    """The metrics of a set; of answers to questions made on the fly there is no text to measure."""
    if not evaluation_set.is_probe:
        return list(dict.fromkeys(options.metrics))
    names = [name for name in dict.fromkeys(options.metrics) if name != "bits_per_byte"]
    return [*names, *(["answer_accuracy"] * ("answer_accuracy" not in names))]
