"""docs/migrate.md names every option of flame that is not ours, and what becomes of it."""

import re

import pytest

from flame_accel.config.flame_aliases import ALIASES, FLAME_ONLY, FLAME_OPTIONS
from flame_accel.config.schema import options
from flame_accel.config.unsupported import UNSUPPORTED
from tests.helpers.runs import ROOT

TEXT = (ROOT / "docs/migrate.md").read_text(encoding="utf-8")
TABLES = {
    heading: re.findall(r"^\| (`.*?) \| (.*) \|$", body, re.MULTILINE)
    for heading, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+\.\w+)", cell)


def test_every_option_that_only_flame_has_is_in_a_table():
    cells = [cell for rows in TABLES.values() for cell, _ in rows]
    named = [name for cell in cells for name in names_in(cell)]
    assert set(named) >= set(FLAME_OPTIONS) | set(UNSUPPORTED) - {"evaluation.dataset"}
    assert set(named) <= set(FLAME_OPTIONS) | set(options())


@pytest.mark.parametrize(("flame", "here"), TABLES["Options with another name"])
def test_other_names_lead_to_options_of_ours(flame, here):
    ours = [name.replace(".no_", ".") for name in names_in(here)]
    assert ours and set(ours) <= set(options())
    for name in names_in(flame):
        assert name not in FLAME_ONLY
        assert name not in ALIASES or ALIASES[name].target in ours


def test_what_is_refused_is_refused():
    refused = [name for cell, _ in TABLES["Options that are refused"] for name in names_in(cell)]
    assert len(refused) > 10 and set(refused) <= set(UNSUPPORTED)
