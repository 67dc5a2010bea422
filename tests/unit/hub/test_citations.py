"""The table of citations: one entry for each architecture, and nothing made up in it."""

import re

import pytest

from flame_accel.hub.citations import PAPERS, find_paper, format_bibtex, model_type_without_norm
from flame_accel.models.catalogue import fla_config_classes


def test_every_model_type_of_fla_has_a_paper():
    assert fla_config_classes().keys() - PAPERS.keys() == set()


@pytest.mark.parametrize("model_type", PAPERS)
def test_an_entry_says_what_is_known_and_nothing_else(model_type: str) -> None:
    paper = PAPERS[model_type]
    entry = format_bibtex(model_type, paper)
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, re.M))
    assert entry.startswith(f"@misc{{{model_type},\n") and entry.endswith("}\n}")
    assert entry.count("{") == entry.count("}")
    assert fields["title"] == f"{{{paper.title}}}"
    assert ("author" in fields) == (paper.authors is not None)
    if paper.arxiv is None:
        assert "eprint" not in fields
        assert fields["url"] == paper.url and fields["year"] == str(paper.year)
    else:
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
        assert fields["url"].endswith(f"/abs/{paper.arxiv}")
        assert fields["year"] == f"20{paper.arxiv[:2]}"
    assert "None" not in entry


def test_a_model_with_another_norm_has_the_paper_of_its_architecture():
    assert model_type_without_norm("gla_np_layernorm") == "gla"
    assert find_paper("gla_layernorm") is PAPERS["gla"]
    assert find_paper("of_my_own") is None
