"""The model card of an export: README.md in the Hub's format.

It holds the run's own figures and neither dates nor timings, so that equal runs export equal bytes.
"""

from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig

from flame_accel import __version__


def write_model_card(folder: Path, config: PretrainedConfig, facts: Mapping[str, str]) -> None:
    """Writes `README.md`.

    Args:
        folder: Of the exported model.
        config: Of the model.
        facts: Rows of the training table.
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
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
        "```",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
