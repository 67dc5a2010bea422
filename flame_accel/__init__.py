"""flame_accel: train Flash Linear Attention language models on Hugging Face Accelerate.

Importing the package lets `AutoModelForCausalLM` load fla's models and, on a machine without a
Triton device, runs them on PyTorch. Both wait until transformers or fla is imported, so that the
command line answers without torch.
"""

from flame_accel._import_hook import prepare_fla_now_or_later
from flame_accel.suppressed_messages import suppress_known_log_messages

__version__ = "0.1.0"

suppress_known_log_messages()
prepare_fla_now_or_later()
