"""Tokenizers: loading one, the byte-level one that ships with the package, their identity.

`encoder` makes documents of texts with them.
"""

import hashlib
from pathlib import Path
from typing import Literal, TypedDict, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flame_accel.config.errors import UserError
from flame_accel.config.synthetic_tasks import NUMBERS_PREFIX
from flame_accel.files import write_json_atomically, write_text_atomically
from flame_accel.hub_lookup import check_model_exists_if_hub_reachable, split_hub_name_unless_path
from flame_accel.model_files import find_unreadable_text_file

BYTE_TOKENIZER = "byte"
"""Name of the tokenizer that ships with the package."""
BYTE_TOKENIZER_FOLDER = Path(__file__).parent / "byte_tokenizer"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_CHOICES = 'a folder with tokenizer.json, a name on the Hub, "byte" or "numbers:N"'
EOS = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<|unknown|>"
TOKENIZER_OPTION = "model.tokenizer_path"
# letters, digits, spaces of all kinds, two alphabets and an emoji: tokenizers differ here
PROBE_TEXT = (
    "The 3 na\u00efve\tfoxes'  don't,\r\n\n    f(x): x**2  # 12345 \u041c\u0438 \u4e16 \U0001f642"
)


def load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has an eos token.

    Args:
        name: "byte", "numbers:N" (see `build_number_tokenizer`), a folder, a tokenizer.json with a
            tokenizer_config.json next to it, or a name on the Hub, with `@revision` or without.
        trust_remote_code: whether to run code that comes with the tokenizer.

    Raises:
        UserError: it cannot be loaded, or it has no eos token.
    """
    if name.startswith(NUMBERS_PREFIX):
        count = name.removeprefix(NUMBERS_PREFIX)
        if not count.isdecimal() or not 2 <= int(count) < 2**24:
            raise UserError(
                f"{count!r} is not a number of tokens from 2 to 2^24",
                where=f"{TOKENIZER_OPTION} {name}",
                remedy=f"write {NUMBERS_PREFIX}N, such as {NUMBERS_PREFIX}8192",
            )
        return build_number_tokenizer(int(count))
    source = BYTE_TOKENIZER_FOLDER if name == BYTE_TOKENIZER else name
    if Path(name).is_file():
        source = _check_and_find_tokenizer_folder(Path(name))
    unreadable = find_unreadable_text_file(Path(source)) if Path(source).is_dir() else None
    if unreadable is not None:
        what, remedy = unreadable
        raise UserError(f"no tokenizer at {name!r}: {what}", where=TOKENIZER_OPTION, remedy=remedy)
    online = Path(source).exists() or check_model_exists_if_hub_reachable(
        name, where=TOKENIZER_OPTION, remedy=f"else name {TOKENIZER_CHOICES}"
    )
    repo_id, revision = split_hub_name_unless_path(str(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            repo_id,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            local_files_only=not online,
        )
    # transformers has no exception of its own for folders with no tokenizer, or half of one
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        place = "" if Path(name).exists() else "there is no such folder, and the Hub says: "
        if not online:
            place = "no such folder, not in the local cache, and the Hub cannot be reached: "
        raise UserError(
            f"no tokenizer at {name!r}: {place}{str(error).splitlines()[0]}",
            where=TOKENIZER_OPTION,
            remedy=f"name {TOKENIZER_CHOICES}",
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer at {name!r} has no eos token, which ends every document",
            where=TOKENIZER_OPTION,
            remedy='set "eos_token" in its tokenizer_config.json to a token of its vocabulary',
        )
    return tokenizer


def build_number_tokenizer(num_numbers: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose token i is the number i, up to `num_numbers` - 1; then eos, pad, unknown.

    It reads numbers with white space between them, which is how it writes them.
    """
    words = [*map(str, range(num_numbers)), EOS, PAD, UNKNOWN]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _check_and_find_tokenizer_folder(tokenizer_json: Path) -> Path:
    """The folder of a tokenizer.json, which also says what the special tokens are.

    Raises:
        UserError: the file is not a tokenizer.json, or the folder does not name special tokens.
    """
    folder = tokenizer_json.absolute().parent
    if tokenizer_json.name != TOKENIZER_FILE:
        raise UserError(
            f"{str(tokenizer_json)!r} is not called {TOKENIZER_FILE}",
            where=TOKENIZER_OPTION,
            remedy=f"name the folder of a saved tokenizer, or a {TOKENIZER_FILE} with a "
            f"{TOKENIZER_CONFIG_FILE} next to it",
        )
    if not (folder / TOKENIZER_CONFIG_FILE).is_file():
        raise UserError(
            f"{str(tokenizer_json)!r} does not say what the special tokens are",
            where=TOKENIZER_OPTION,
            remedy=f"write {folder / TOKENIZER_CONFIG_FILE} with "
            '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "..."}, then name the '
            f"file or its folder {folder}",
        )
    return folder


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of rows an embedding needs: one more than the largest id, added tokens included."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def resolve_add_bos(
    tokenizer: PreTrainedTokenizerBase, policy: Literal["auto", "always", "never"]
) -> bool:
    """Whether documents start with bos; "auto" follows what the tokenizer itself does with a text.

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


def tokenizer_identity(
    tokenizer: PreTrainedTokenizerBase, *, with_chat_template: bool = False
) -> str:
    """Hash of what a tokenizer does (vocabulary, eos, bos, a probe text), not of how it is stored.

    Args:
        tokenizer: the tokenizer.
        with_chat_template: whether its chat template is part of the hash.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # tokenizers read an eos in a text as a token or as text
    probe = tokenizer(f"{PROBE_TEXT}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    content = [vocabulary, tokenizer.eos_token_id, tokenizer.bos_token_id, probe]
    if with_chat_template:
        content.append(tokenizer.chat_template)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def build_byte_tokenizer() -> Tokenizer:
    """Build the byte-level tokenizer: ids 0 to 255 are the bytes of UTF-8, then eos and padding.

    Decoding returns any text unchanged. There is no bos token, no merge and no pre-tokenization. A
    special token spelled out in a text is read as text; tokenizer.json cannot say so, therefore
    `write_byte_tokenizer` says it in transformers' tokenizer_config.json.
    """
    # the ByteLevel alphabet writes byte b as character b if that is printable, otherwise as the
    # next unused character from 256 on (GPT-2, Radford et al. 2019)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    shifted = iter(range(256, 512))
    vocabulary = {chr(b) if chr(b) in alphabet else chr(next(shifted)): b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (EOS, PAD)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def is_byte_tokenizer(backend: Tokenizer) -> bool:
    """Whether a tokenizer is the byte-level one, also after saving and loading it elsewhere."""
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
    """Write the files in ``byte_tokenizer/``, which any release of transformers loads."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_text_atomically(folder / "tokenizer.json", build_byte_tokenizer().to_str(pretty=True))
    write_json_atomically(folder / "tokenizer_config.json", config, indent=2)


class BosEosPadKwargs(TypedDict):
    """The token ids that a model's config has; None: the tokenizer has no such token."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None


def bos_eos_pad_config_kwargs(tokenizer: PreTrainedTokenizerBase) -> BosEosPadKwargs:
    """The ids of a tokenizer's special tokens under the names that a model's config has."""
    ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    # transformers' annotation has strings as well
    bos, eos, pad = (cast(int | None, token_id) for token_id in ids)
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
