"""What the Hub's `validate-yaml` says about the metadata of a model card.

Covers the fields that a model card here has. Licenses, languages and model ids are judged by the
Hub's lists and patterns (https://huggingface.co/docs/hub/model-cards), not by what exists there.
"""

import re
from typing import NamedTuple

import yaml

_LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear"
    " bsl-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0"
    " cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0"
    " cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0"
    " ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1"
    " lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0 ms-pl ncsa odbl odc-by"
    " openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"
)
LICENSES = frozenset(_LICENSES.split())
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
REPOSITORY_ID = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)
_PIPELINE_TAGS = (
    "text-generation text-classification token-classification fill-mask feature-extraction"
    " question-answering summarization translation text-ranking sentence-similarity"
)
PIPELINE_TAGS = frozenset(_PIPELINE_TAGS.split())
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


class CardVerdict(NamedTuple):
    """Errors, each of which refuses the card, and warnings."""

    errors: list[str]
    warnings: list[str]


class FrontMatter(NamedTuple):
    """The metadata of a card; None without any. `error` where it is not a YAML mapping."""

    metadata: dict[str, object] | None
    error: str | None


def read_front_matter(card: str) -> FrontMatter:
    """The metadata at the top of a card."""
    found = FRONT_MATTER.match(card)
    if found is None:
        return FrontMatter(None, None)
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return FrontMatter(None, f"Invalid YAML in the metadata: {error}")
    if metadata is None:
        return FrontMatter(None, None)
    if not isinstance(metadata, dict):
        return FrontMatter(None, "The metadata must be a mapping")
    return FrontMatter(metadata, None)


def judge_card(card: str) -> CardVerdict:
    """Errors and warnings about the metadata of a model card."""
    metadata, error = read_front_matter(card)
    if error is not None:
        return CardVerdict([error], [])
    if metadata is None:
        return CardVerdict([], ["empty or missing yaml metadata in repo card"])
    errors: list[str] = []
    for field, pattern in (
        ("license", None),
        ("language", LANGUAGE),
        ("datasets", REPOSITORY_ID),
        ("base_model", REPOSITORY_ID),
        ("tags", None),
    ):
        for where, value in _list_values(field, metadata.get(field)):
            if not isinstance(value, str):
                errors.append(f'"{where}" must be a string')
            elif pattern is not None and not pattern.fullmatch(value):
                errors.append(f'"{where}" with value "{value}" is not valid')
            elif field == "license" and value not in LICENSES:
                errors.append(f'"{where}" must be one of [{", ".join(sorted(LICENSES))}]')
    for field in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if field in metadata and not isinstance(metadata[field], str):
            errors.append(f'"{field}" must be a string')
    errors += _judge_model_index(metadata.get("model-index"))
    warnings = []
    tag = metadata.get("pipeline_tag")
    if isinstance(tag, str) and tag not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{tag}" is not in the official list')
    return CardVerdict(errors, warnings)


def _list_values(field: str, value: object) -> list[tuple[str, object]]:
    """Each value of a field that takes one or a list, and where it stands."""
    if value is None:
        return []
    if isinstance(value, list):
        return [(f"{field}[{index}]", item) for index, item in enumerate(value)]
    return [(field, value)]


def _judge_model_index(index: object) -> list[str]:
    """Errors of the evaluation results: every level names its parts."""
    if index is None:
        return []
    errors: list[str] = []
    for where, model in _mappings("model-index", index, errors):
        _require(where, model, ("name", "results"), errors)
        for place, result in _mappings(f"{where}.results", model.get("results"), errors):
            _require(place, result, ("task", "metrics"), errors)
            for part, needed in (("task", ("type",)), ("dataset", ("type", "name"))):
                if part not in result:
                    continue
                if isinstance(result[part], dict):
                    _require(f"{place}.{part}", result[part], needed, errors)
                else:
                    errors.append(f'"{place}.{part}" must be of type object')
            for metric_place, metric in _mappings(
                f"{place}.metrics", result.get("metrics"), errors
            ):
                _require(metric_place, metric, ("type", "value"), errors)
    return errors


def _mappings(where: str, value: object, errors: list[str]) -> list[tuple[str, dict]]:
    """The mappings of a list and their places; what else there is becomes an error."""
    if value is None:
        return []
    if not isinstance(value, list):
        errors.append(f'"{where}" must be an array')
        return []
    places = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    mappings = [(place, item) for place, item in places if isinstance(item, dict)]
    wrong = [place for place, item in places if not isinstance(item, dict)]
    errors += [f'"{place}" must be of type object' for place in wrong]
    return mappings


def _require(where: str, value: dict, names: tuple[str, ...], errors: list[str]) -> None:
    errors += [f'"{where}.{name}" is required' for name in names if value.get(name) is None]
