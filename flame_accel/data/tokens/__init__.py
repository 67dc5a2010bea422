"""Text to tokens: tokenizers, what a document becomes, conversations."""
