"""Parameters of a model by part: embeddings, mixers, feed-forward layers, norms, head."""

from torch import nn
from transformers import PreTrainedModel

from flame_accel.parallel.blocks import find_blocks

FEED_FORWARD_NAMES = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "channel_mixer")
"""What architectures call the part of a block that mixes channels; the other one mixes tokens."""
PARTS = ("embeddings", "mixers", "feed-forward", "norms", "head", "others")


def count_parameters_by_part(model: PreTrainedModel) -> dict[str, int]:
    """Counts each parameter once; a head that is tied to the embedding is part of that.

    Norms inside mixers count as norms.

    Args:
        model: On any device, meta included.

    Returns:
        A number for each of `PARTS`.
    """
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    seen: set[nn.Parameter] = set()

    def count(part: str, module: nn.Module | None) -> None:
        for parameter in module.parameters() if module is not None else ():
            if parameter not in seen:
                seen.add(parameter)
                counts[part] += parameter.numel()

    # the first part that holds a parameter has it
    count("embeddings", model.get_input_embeddings())
    count("head", model.get_output_embeddings())
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            count("norms", module)
    for block in find_blocks(model, needed_by_option="job.dry_run"):
        for name, child in block.named_children():
            count("feed-forward" if name in FEED_FORWARD_NAMES else "mixers", child)
    count("others", model)
    return counts
