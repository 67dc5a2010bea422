"""Over how many peers a model can be split, and the refusal of what cannot be."""

import math
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from flame_accel.config import UserError
from flame_accel.models.norms import base_model_type
from flame_accel.parallel.tensor.plans import MODEL_TYPES, PLANS, Plan

OPTION = "training.tensor_parallel_degree"


class Region(NamedTuple):
    """A module that peers enter and leave together."""

    name: str
    """In its model."""
    module: nn.Module
    plan: Plan


def find_regions(model: PreTrainedModel) -> list[Region]:
    """The mixers and MLPs of a model, in its order.

    Raises:
        UserError: There is no plan for the model, or for one of its layers.
    """
    # with another norm (model.norm_type) it is a type of its own
    model_type = base_model_type(model.config)
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"there is no plan for splitting {model_type} over devices",
            where=OPTION,
            remedy=f"tensor parallelism works for {', '.join(MODEL_TYPES)}; "
            "training.data_parallel_shard_degree spreads the weights of any model over devices",
            exit_code=2,
        )
    decoder: Any = model.get_decoder()
    regions = []
    for number, block in enumerate(decoder.layers):
        for part in ("attn", "mlp"):
            module, name = getattr(block, part), f"{model.base_model_prefix}.layers.{number}.{part}"
            plan = PLANS.get(type(module).__name__)
            names = [name for name, _ in module.named_parameters()]
            if plan is None or not all(is_planned(plan, name) for name in names):
                raise UserError(
                    f"there is no plan for splitting {type(module).__name__} over devices",
                    where=f"{name}, {OPTION}",
                    remedy=f"use layers of fla's {', '.join(MODEL_TYPES)}",
                    exit_code=2,
                )
            regions.append(Region(name, module, plan))
    return regions


def is_planned(plan: Plan, name: str) -> bool:
    """Whether a plan says what becomes of a parameter; it has none for biases of outputs."""
    if any(_belongs(name, part) for part in plan.columns):
        return name.endswith("weight")
    return any(_belongs(name, part) for part in (*plan.rows, *plan.whole))


def split_dimension(plan: Plan, name: str) -> int | None:
    """The dimension along which a parameter of a region is split, None if it stays whole."""
    if any(_belongs(name, part) for part in plan.rows):
        return 0
    return 1 if any(_belongs(name, part) for part in plan.columns) else None


def _belongs(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def possible_degrees(regions: list[Region]) -> list[int]:
    """The degrees that divide all heads and features that would be dealt out, 1 among them."""
    counts = (getattr(region.module, name) for region in regions for name in region.plan.counts)
    common = math.gcd(*counts)
    return [degree for degree in range(1, common + 1) if common % degree == 0]


def check_tensor_parallel_degree(regions: list[Region], degree: int) -> None:
    """Refuses a degree that does not divide everything that would be dealt out.

    Raises:
        UserError: Names what is not divisible, and the degrees that would work.
    """
    for region in regions:
        for count in region.plan.counts:
            size = getattr(region.module, count)
            if size % degree:
                degrees = ", ".join(map(str, possible_degrees(regions)))
                raise UserError(
                    f"{degree} devices cannot share {count} = {size} of {region.name} evenly",
                    where=OPTION,
                    remedy=f"for this model these degrees work: {degrees}",
                    exit_code=2,
                )


def check_loss_without_logits(model: PreTrainedModel) -> None:
    """Refuses a loss that is not a sum over the vocabulary, for which peers have no logits.

    Raises:
        UserError: The config adds fla's penalty of the largest logit.
    """
    if getattr(model.config, "use_l2warp", False):
        # not every config has the field
        raise UserError(
            "use_l2warp of the model config needs all logits in one place",
            where=OPTION,
            remedy="add --training.disable_loss_parallel",
            exit_code=2,
        )
