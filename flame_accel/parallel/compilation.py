"""torch.compile, block by block and in place."""

from transformers import PreTrainedModel


def compile_blocks(model: PreTrainedModel) -> None:
    """Compiles each block of a model, and what stands outside of them, in place."""
