"""Text to tokens: tokenizers, encoding of texts and conversations, chat templates."""
