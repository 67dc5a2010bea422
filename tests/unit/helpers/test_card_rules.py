"""The local Hub's rules of a model card's metadata."""

import pytest

from tests.helpers.local_hub.card_rules import judge_card, read_front_matter

RESULT = """
model-index:
- name: tiny
  results:
  - task: {type: text-generation}
    dataset: {type: wikitext, name: WikiText}
    metrics: [{type: perplexity, value: 12.5}]
"""


def card(metadata: str) -> str:
    return f"---\n{metadata.strip()}\n---\n# A model\n"


@pytest.mark.parametrize(
    "metadata",
    [
        "license: apache-2.0",
        "license: other\nlicense_name: mine\nlicense_link: LICENSE",
        "language: en",
        "language: [en, zh, zh-Hans, deu, code, multilingual]",
        "base_model: org/model-1.3B",
        "base_model: [gpt2, org/model]",
        "datasets: [org/data, wikitext]\ntags: [fla, gla]",
        "library_name: transformers\npipeline_tag: text-generation",
        RESULT,
    ],
)
def test_what_the_hub_takes(metadata: str) -> None:
    assert judge_card(card(metadata)) == ([], [])


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("license: Apache 2.0", '"license" must be one of'),
        ("language: English", '"language" with value "English" is not valid'),
        ("language: [en, german]", '"language[1]" with value "german" is not valid'),
        ("base_model: /home/me/model", '"base_model" with value "/home/me/model" is not valid'),
        ("datasets: [data/train/a.jsonl]", '"datasets[0]" with value'),
        ("tags: [1]", '"tags[0]" must be a string'),
        ("library_name: [a]", '"library_name" must be a string'),
        ("license: [mit", "Invalid YAML"),
        ("- license", "must be a mapping"),
        ("model-index: tiny", '"model-index" must be an array'),
        ("model-index: [tiny]", '"model-index[0]" must be of type object'),
        (RESULT.replace("name: tiny", "names: tiny"), '"model-index[0].name" is required'),
        (RESULT.replace(", value: 12.5", ""), ".results[0].metrics[0].value"),
        (RESULT.replace(", name: WikiText", ""), ".results[0].dataset.name"),
        (RESULT.replace("{type: text-generation}", "text"), ".results[0].task"),
    ],
)
def test_what_the_hub_refuses(metadata: str, error: str) -> None:
    (told,) = judge_card(card(metadata)).errors
    assert error in told


@pytest.mark.parametrize("text", ["", "# A model", "---\n---\n# A model", card("# nothing")])
def test_a_card_without_metadata_is_warned_about(text: str) -> None:
    assert judge_card(text) == ([], ["empty or missing yaml metadata in repo card"])


def test_an_unknown_task_is_warned_about() -> None:
    (warning,) = judge_card(card("pipeline_tag: text-generating")).warnings
    assert "text-generating" in warning


def test_the_metadata_end_with_the_first_rule() -> None:
    text = card("license: mit") + "---\nlicense: other\n---\n"
    assert read_front_matter(text).metadata == {"license": "mit"}
