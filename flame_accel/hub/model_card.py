"""The model card of an export: README.md in the Hub's format.

It holds the run's own figures and neither dates nor timings, so that equal runs export equal bytes.
"""

from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig

from flame_accel import __version__
from flame_accel.checkpoint.train_state import TrainState
from flame_accel.config import OptimizerConfig, TrainingConfig
from flame_accel.files import write_text_atomically


def write_model_card(
    folder: Path, config: PretrainedConfig, training_table: Mapping[str, str]
) -> None:
    """Writes `README.md` into the folder of an exported model.

    Args:
        folder: Folder of the exported model; it must exist.
        config: The model's configuration.
        training_table: Rows of the training table, name to value.
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- flash-linear-attention",
        f"- {config.model_type}",
        "- flame_accel",
        "---",
        "",
        f"# A {config.model_type} language model",
        "",
        f"Trained with flame_accel {__version__}.",
        "",
        "```python",
        "import fla  # registers the architecture; on a machine without a GPU: import flame_accel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'path = "."  # this folder, or its name on the Hub',
        "model = AutoModelForCausalLM.from_pretrained(path)",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        'inputs = tokenizer("def ", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64, do_sample=True)[0]))",
        "```",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in training_table.items()),
    ]
    write_text_atomically(folder / "README.md", "\n".join(lines) + "\n")


def training_table_rows(
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    state: TrainState,
    *,
    tokens_per_step: int,
    num_parameters: int,
) -> dict[str, str]:
    """Rows of the card's training table: what the model was trained on, for how long and how."""
    return {
        "data": str(training.dataset),
        "tokens": f"{state.tokens:,}",
        "updates": f"{state.step:,}",
        "tokens per update": f"{tokens_per_step:,}",
        "parameters": f"{num_parameters:,}",
        "learning rate": f"{optimizer.lr:g}, {optimizer.scheduler}",
    }
