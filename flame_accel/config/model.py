"""Options of the model and of the optimizer that fits it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What is trained."""

    config: str | None = None
    """Model config, required: a JSON file in the Hugging Face format, a folder with a config.json,
    the name of a preset (such as gla_340M), or a name on the Hub. The weights start from
    scratch."""
    tokenizer_path: str | None = None
    """Tokenizer: a folder, a name on the Hub, or "byte" for the byte-level tokenizer that comes
    with flame_accel. None takes the tokenizer in the folder or Hub repository of model.config."""
    norm_type: Literal["layernorm", "np_layernorm", "rmsnorm", "fused_rmsnorm"] | None = None
    """Type of layer normalization in the blocks and before the head: layernorm (without a bias),
    np_layernorm (without parameters), rmsnorm, or fused_rmsnorm, which is fla's kernel. None leaves
    the norm of the model config."""
    custom: tuple[str, ...] = ()
    """Your own architectures: Python packages, files or folders that register them with
    transformers, imported before the model is built; several are separated by commas."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """What runs fla's operators: triton on a GPU, torch anywhere; auto takes triton where there is
    a device for it."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model or a tokenizer from the Hub. Only for repositories
    that you trust."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How the weights follow the gradients, and how fast."""

    name: Literal["AdamW", "Adam", "Muon"] = "AdamW"
    """Optimizer. AdamW decays the weights themselves, Adam adds the decay to the gradient (L2).
    Muon makes the momentum of hidden matrices orthogonal and takes AdamW for all other parameters,
    with the same learning rate and decay; not with DeepSpeed."""
    lr: float = 3e-4
    """Learning rate: the peak, after the warm-up."""
    eps: float = 1e-8
    """Term that AdamW and Adam add to the denominator, like Muon for what is no hidden matrix."""
    beta1: float = 0.9
    """Decay of the running mean of the gradients."""
    beta2: float = 0.95
    """Decay of the running mean of the squared gradients."""
    weight_decay: float = 0.1
    """Weight decay. Norms, biases and the parameters that fla exempts are never decayed. 0 turns it
    off."""
    fused: bool = True
    """Use the fused implementation of AdamW and Adam where the device has one (CPU, CUDA, XPU,
    MPS), torch's default elsewhere. Without it each step waits for the device."""
    scheduler: Literal["wsd", "cosine", "linear"] = "wsd"
    """Learning rate schedule after the warm-up. wsd stays at the peak and decays in the last
    optimizer.decay_ratio of the steps; cosine and linear decay from the end of the warm-up."""
    decay_ratio: float = 0.1
    """Length of the decay as a fraction of training.steps; wsd only. 0 means no decay."""
    decay_type: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay; wsd only."""
    min_lr_ratio: float = 0.1
    """Floor of the learning rate as a ratio of optimizer.lr, reached by the last update."""
    early_step_in_backward: bool = False
    """Apply the optimizer within the backward pass, which saves the memory of the gradients. For
    AdamW and Adam on one device or with FSDP2; needs training.max_norm 0, training.skip_nan_inf
    false and training.gradient_accumulation_steps 1."""
