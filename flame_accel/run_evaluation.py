"""The evaluation within a run: built for its model and data, and what is made of its findings."""

import re

from accelerate import Accelerator
from torch import nn

from flame_accel.checkpoint import note_if_best
from flame_accel.config import Config, UserError
from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
from flame_accel.evaluation import Evaluator
from flame_accel.models.norms import base_model_type
from flame_accel.parallel import unwrap_model
from flame_accel.run_parts import Components, LoopState


def build_evaluator_if_configured(
    config: Config, accelerator: Accelerator, components: Components
) -> Evaluator | None:
    """The evaluator of a run; None without validation sets and prompts."""
    if not components.run_data.evaluation and config.evaluation.prompts is None:
        return None
    model_config = unwrap_model(accelerator, components.model).config
    device = "cuda" if accelerator.device.type == "cuda" else "cpu"
    broken = known_issue_reasons_by_law(base_model_type(model_config), device)
    evaluator = Evaluator(
        accelerator,
        config.evaluation,
        config.training,
        components.run_data,
        may_carry_state="reads in pieces" not in broken,
    )
    check_learned_positions_suffice(components.model, evaluator.longest_row)
    return evaluator


def check_learned_positions_suffice(model: nn.Module, longest_row: int) -> None:
    """Checks that a model whose positions have learned vectors has one for each of a row.

    Raises:
        UserError: It has not; others go on beyond the trained length.
    """
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and re.search("wpe|position", name.split(".")[-1])
    ]
    if tables and min(tables) < longest_row:
        raise UserError(
            f"a validation row has {longest_row:,} tokens, and the model has learned positions for "
            f"{min(tables):,}",
            where="evaluation.max_context",
            remedy=f"set evaluation.max_context to {min(tables)} at most, or to 0; questions made "
            "on the fly must be shorter as well",
        )


def evaluate_and_write(
    config: Config, accelerator: Accelerator, components: Components, loop: LoopState
) -> dict[str, float]:
    """Evaluates the model, if the run has validation sets; returns what metrics.jsonl says of it.

    Every rank must call it.
    """
    if loop.evaluator is None:
        return {}
    # kernels may be tuned for its shapes first
    with loop.long_phase("evaluation", accelerator, config.comm):
        found = loop.evaluator.evaluate(
            components.model,
            step=loop.state.step,
            tokens=loop.state.tokens,
            after_batch=loop.watchdog.feed,
        )
    loop.metric_logger.write_evaluations(found.evaluations)
    note_if_best(loop.state, found.record, config.checkpoint)
    return found.record
