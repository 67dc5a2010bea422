"""flame_accel: train Flash Linear Attention language models on Hugging Face Accelerate.

Importing the package makes fla's models loadable by `AutoModelForCausalLM` and, on a machine
without a Triton device, runnable on PyTorch. Both wait until transformers or fla is imported, so
that the command line answers without torch.
"""

from flame_accel._import_hook import prepare_fla

__version__ = "0.1.0"

prepare_fla()
