"""Matrix products in 8-bit floats through torchao."""

from torch import nn

from flame_accel.config import Float8Config


def convert_to_float8(model: nn.Module, config: Float8Config) -> None:
    """Replaces the linear layers of a model by torchao's, in place, as the recipe says."""
