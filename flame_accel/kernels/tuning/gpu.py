"""Which GPU this is: the name that tuned configurations are kept under, and what they depend on."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """A kind of GPU."""

    name: str
    """As fla names it, for instance `NVIDIA_H100_80GB_HBM3`; what was tuned belongs to it."""
    capability: str
    """Architecture that kernels are compiled for, for instance `sm_90` or `gfx942`; what is shipped
    belongs to it, because GPUs that run the same code rank a kernel's configurations alike."""


def detect_gpu_name_and_capability() -> Gpu:
    """The current device of this process; its name twice where it has no known architecture."""
    import torch
    from fla.ops.utils.cache import get_gpu_info

    name = get_gpu_info()
    if not torch.cuda.is_available():
        return Gpu(name, name)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return Gpu(name, properties.gcnArchName.partition(":")[0])
    return Gpu(name, f"sm_{properties.major}{properties.minor}")
