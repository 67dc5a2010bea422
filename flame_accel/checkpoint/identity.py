"""Whether stored weights belong to the model and the tokenizer in memory.

Names and shapes of weights say little: models with other heads, rotary bases or norms have the
same. So the config and the tokenizer that a checkpoint or an export stores next to its weights are
compared. Which config fields matter is in `models/config_fields`; the position in the data is
compared by `data`.
"""

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flame_accel.checkpoint.hf_model import REFUSED_BY_TRANSFORMERS
from flame_accel.config import UserError
from flame_accel.data.tokens.tokenizer import load_tokenizer, tokenizer_identity
from flame_accel.json_text import parse_json_text
from flame_accel.models.config_fields import FieldDifference, find_decisive_differences
from flame_accel.observe import get_logger

TOKENIZER = "tokenizer"
"""Stands for the tokenizer among the names of accepted differences."""
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
)
"""Patterns of the files that a tokenizer consists of."""


def check_weights_match_config_and_tokenizer(
    folder: Path,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    accepted: Collection[str] = (),
    where: str,
    remedy: str,
) -> None:
    """Checks that a folder's weights are those of this model and this tokenizer.

    A folder without config.json or tokenizer is taken by the names and shapes of its weights.

    Args:
        folder: A checkpoint, an export, or a downloaded model.
        config: Config of the model in memory.
        tokenizer: The run's tokenizer.
        accepted: Names of config fields that may differ, and `tokenizer`; `attn` is also
            `attn.window_size`. Each such difference is logged, and each name without one.
        where: The option and path that the error names.
        remedy: What to do about a difference.

    Raises:
        UserError: They are another model's; names every field that differs, with both values.
    """
    differences = _find_config_and_tokenizer_differences(folder, config, tokenizer)
    # with the dot, `attn` is also `attn.window_size`, but not `attn_mode`
    prefixes = tuple(f"{name}." for name in accepted)
    refused = [each for each in differences if not f"{each.name}.".startswith(prefixes)]
    for name in accepted:
        if not any(f"{each.name}.".startswith(f"{name}.") for each in differences):
            get_logger().info(
                "%s: %s of checkpoint.accept_differences does not differ", where, name
            )
    if refused:
        raise UserError(
            f"the weights are those of another model:\n{_format_difference_table(refused)}",
            where=where,
            remedy=remedy,
        )
    for each in differences:
        get_logger().warning(
            "%s: %s is %s there and %s in this run (checkpoint.accept_differences)",
            where,
            each.name,
            each.stored,
            each.built,
        )


def _find_config_and_tokenizer_differences(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> list[FieldDifference]:
    """Decisive config fields that differ, and the tokenizer if it does."""
    stored = read_config_json_if_present(folder)
    for name in REFUSED_BY_TRANSFORMERS.get(str(stored.get("model_type")), ()):
        if not hasattr(config, name):
            stored.pop(name, None)
    differences = find_decisive_differences(stored, config) if stored else []
    if not any(folder.glob("tokenizer*")):
        return differences
    try:
        stored_tokenizer = load_tokenizer(str(folder), trust_remote_code=False)
    except UserError as error:
        get_logger().warning("the tokenizer of %s is not compared: %s", folder, error.what)
        return differences
    there, here = tokenizer_identity(stored_tokenizer), tokenizer_identity(tokenizer)
    if there == here and (parts := _list_differing_pipeline_parts(stored_tokenizer, tokenizer)):
        here += f", with another {', '.join(parts)}"
    if there != here:
        differences.append(FieldDifference(TOKENIZER, there, here))
    return differences


def _list_differing_pipeline_parts(
    stored: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """The parts of tokenizer.json in which two fast tokenizers differ, such as normalizer.

    The identity hashes what a tokenizer does with one text; other merges or a post-processor that
    adds bos do not show in it. Slow tokenizers are not compared.
    """
    before, after = (
        _fast_tokenizer_pipeline_or_none(stored),
        _fast_tokenizer_pipeline_or_none(tokenizer),
    )
    if before is None or after is None or before == after:
        return []
    # storing may change how a tokenizer is written: what the run's own would be stored as is equal
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            after = (
                _fast_tokenizer_pipeline_or_none(load_tokenizer(folder, trust_remote_code=False))
                or after
            )
        except UserError as error:
            get_logger().debug("the tokenizer is compared as it is in memory: %s", error.what)
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def _fast_tokenizer_pipeline_or_none(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """What tokenizer.json says of a fast tokenizer, without batching; None of a slow one."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in parts.items() if name not in ("padding", "truncation")}


def read_config_json_if_present(folder: Path) -> dict[str, Any]:
    """The config.json next to stored weights; empty if there is none.

    Raises:
        UserError: It is not a JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        stored = parse_json_text(file.read_bytes())
    except ValueError as error:
        stored = error
    if not isinstance(stored, dict):
        raise UserError(
            "is not the config of a model in the Hugging Face format",
            where=str(file),
            remedy="copy or download the folder again",
        )
    # transformers writes infinity, which JSON has not, as an object
    return PreTrainedConfig._decode_special_floats(stored)


def _format_difference_table(differences: Collection[FieldDifference]) -> str:
    rows = [("field", "of the weights", "of this run")]
    rows += [(each.name, str(each.stored), str(each.built)) for each in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(
        f"    {row[0]:<{widths[0]}}   {row[1]:<{widths[1]}}   {row[2]}" for row in rows
    )
