"""README.md and the other pages are up to date with what they describe."""

import re
from pathlib import Path

import pytest
import yaml

import flame_accel
from docs.generate_options import PAGE, describe_all
from flame_accel.__main__ import COMMANDS
from tests.helpers.layers import LAYERS
from tests.helpers.runs import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def test_the_options_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == describe_all(), "python -m docs.generate_options"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:configs|accelerate_configs|benchmarks|docs|tests|kernels|config|models|diagnosis|\.ci)/[\w./]*)`",
        text,
    )
    for name in named:
        places = (ROOT / name, ROOT / "flame_accel" / name)
        assert "FAMILY" in name or any(place.exists() for place in places), name


def test_contributing_shows_the_layers_and_tests_there_are():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", row)) for row in rows] == list(LAYERS)
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[
        0
    ].split()
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= set(targets)


def test_the_readme_knows_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"python -m flame_accel ([a-z]+)", text)) == set(COMMANDS)


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*?)\]", text, re.MULTILINE)[0] == flame_accel.__version__
    assert f'version = "{flame_accel.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_checks_are_one_list():
    script = (ROOT / ".ci/run").read_text()
    checks = re.findall(r"^CHECKS=\((.*)\)$", script, re.MULTILINE)[0].split()
    assert set(re.findall(r"^(\w+)\(\) {", script, re.MULTILINE)) == {*checks, "slow"}
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^check:\n\tbash \.ci/run\n\n{' '.join(checks)}:\n", makefile, re.MULTILINE)
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^\* `(\w+)`: ", contributing, re.MULTILINE) == checks


def test_continuous_integration_runs_what_everyone_runs():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["check"]["steps"] if "run" in step][1:] == ["bash .ci/run"]
    assert jobs["slow"]["steps"][-1]["run"] == "make test-slow"
    required = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    assert required and required[1] in jobs["check"]["strategy"]["matrix"]["python"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert sum(len(repo["hooks"]) for repo in hooks) <= 6
    assert hooks[0]["hooks"][0]["entry"] == "bash .ci/run lint"
