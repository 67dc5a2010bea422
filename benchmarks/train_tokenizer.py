"""Trains a byte-level BPE tokenizer on the standard library, for benchmarks without a network.

python benchmarks/train_tokenizer.py FOLDER [VOCABULARY_SIZE]
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flame_accel.data.sources.python_stdlib import read_stdlib_sources

END = "<|endoftext|>"


def main(folder: Path, vocabulary_size: int) -> None:
    """Writes the tokenizer to a folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_stdlib_sources("train"), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.save_pretrained(folder)
    print(f"{len(fast):,} tokens in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 32_000)
