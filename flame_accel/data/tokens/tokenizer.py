"""Tokenizers: loading one, the byte-level one that ships here, what they are told apart by.

What becomes of a text is the encoder's part.
"""

import hashlib
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flame_accel.config.errors import UserError
from flame_accel.files import write_json, write_text

BYTE_TOKENIZER = "byte"
"""Name of the tokenizer that ships with the package."""
BYTE_TOKENIZER_FOLDER = Path(__file__).parent / "byte_tokenizer"
EOS = "<|endoftext|>"
PAD = "<|pad|>"
WHERE = "model.tokenizer_path"
# letters, digits, spaces of all kinds, two alphabets and an emoji: tokenizers differ here
PROBE = (
    "The 3 na\u00efve\tfoxes'  don't,\r\n\n    f(x): x**2  # 12345 \u041c\u0438 \u4e16 \U0001f642"
)


def load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has an eos token: "byte", a folder, or a name on the Hub.

    Raises:
        UserError: there is no such tokenizer, or it has no eos token.
    """
    source = BYTE_TOKENIZER_FOLDER if name == BYTE_TOKENIZER else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    # transformers has no exception of its own for folders that hold no tokenizer, or half of one
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        place = "" if Path(name).exists() else "no such folder, and from the Hub: "
        raise UserError(
            f"no tokenizer at {name!r}: {place}{str(error).splitlines()[0]}",
            where=WHERE,
            remedy='give a folder with tokenizer.json, a name on the Hub, or "byte"',
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer at {name!r} has no eos token, which ends every document",
            where=WHERE,
            remedy='set "eos_token" in its tokenizer_config.json to a token of its vocabulary',
        )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs: one more than the largest id, added tokens included."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def resolve_add_bos(
    tokenizer: PreTrainedTokenizerBase, policy: Literal["auto", "always", "never"]
) -> bool:
    """Whether documents start with bos; "auto" does what the tokenizer does with a text.

    Raises:
        UserError: "always", and the tokenizer has no bos token.
    """
    bos = tokenizer.bos_token_id
    if policy == "never" or (policy == "auto" and bos is None):
        return False
    if bos is None:
        raise UserError(
            'is "always", but the tokenizer has no bos token',
            where="training.add_bos",
            remedy="use auto or never, or a tokenizer with a bos token",
        )
    return policy == "always" or tokenizer("a")["input_ids"][:1] == [bos]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase, *, conversations: bool = False) -> str:
    """Hash of what the tokenizer does (vocabulary, eos, bos, a probe), not of how it is stored.

    Args:
        tokenizer: the tokenizer.
        conversations: whether its chat template counts as well.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # eos inside of a text is read as a token or as text
    probe = tokenizer(f"{PROBE}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    content = [vocabulary, tokenizer.eos_token_id, tokenizer.bos_token_id, probe]
    if conversations:
        content.append(tokenizer.chat_template)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def build_byte_tokenizer() -> Tokenizer:
    """The byte-level tokenizer: ids 0 to 255 are the bytes of UTF-8, then eos and padding.

    Any text comes back as it was. There is no bos token, no merge and no pre-tokenisation. What
    looks like a special token in a text is text, which `write_byte_tokenizer` has transformers
    remember, since tokenizer.json has no place for it.
    """
    # the ByteLevel alphabet shows byte b as the character b where that is printable, and as the
    # next one from 256 on where it is not (GPT-2, Radford et al. 2019)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    shifted = iter(range(256, 512))
    vocabulary = {chr(b) if chr(b) in alphabet else chr(next(shifted)): b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (EOS, PAD)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def gives_bytes(backend: Tokenizer) -> bool:
    """Whether a tokenizer does what the byte-level one does, wherever it was saved meanwhile."""
    ours = build_byte_tokenizer()
    return (
        backend.encode_special_tokens
        and all(token.special for token in backend.get_added_tokens_decoder().values())
        and backend.normalizer is None
        and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        and backend.pre_tokenizer.__getstate__() == ours.pre_tokenizer.__getstate__()
        and backend.model.__getstate__() == ours.model.__getstate__()
    )


def write_byte_tokenizer(folder: Path) -> None:
    """Write the files that ship in ``byte_tokenizer/``; any release of transformers loads them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_text(folder / "tokenizer.json", build_byte_tokenizer().to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", config, indent=2)
