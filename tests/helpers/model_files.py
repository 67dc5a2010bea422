"""The files of a model that tests upload, as small as they can be."""

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "README.md")
"""What every exported model consists of."""
