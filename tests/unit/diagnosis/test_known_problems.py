"""The table of known problems: each row applies to the machine that has the problem, and alone."""

import re
from dataclasses import replace
from pathlib import Path

import fla
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from flame_accel.diagnosis.detected_problems import detect_known_problems
from flame_accel.diagnosis.known_problems import PROBLEMS, SUPPORTED
from tests.helpers.machines import GOOD, ON_CPU, SICK, with_versions
from tests.helpers.runs import ROOT


def test_a_good_machine_has_no_problem():
    hidden = replace(ON_CPU, driver_devices=1, hidden_devices=True)
    patched = with_versions(torch="2.13.2+cu130", triton="3.7.9", transformers="5.23.4")
    for machine in (GOOD, ON_CPU, hidden):
        assert detect_known_problems(machine) == []
    assert detect_known_problems(replace(patched, triton_required_by_torch=">=3.7")) == []


def test_every_row_has_a_machine():
    assert {problem.name for problem in PROBLEMS} == set(SICK)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_a_row_applies_where_it_should_and_alone(problem):
    machine = SICK[problem.name]
    findings = detect_known_problems(machine, model_parts=frozenset(list(problem.parts or ())[:1]))
    assert [finding.name for finding in findings] == [problem.name]
    assert findings[0].blocks_training == problem.blocks_training
    for text in (findings[0].description, findings[0].remedy):
        assert text and "{" not in text and "None" not in text


def test_the_table_names_the_operators_that_fla_refuses():
    """All that end in `chunk_bwd_dqkwg` with gates, and the versions of fla's own guard."""
    ops = Path(fla.__path__[0]) / "ops"
    guard = (ops / "common/chunk_o.py").read_text().partition("def chunk_bwd_dqkwg(")[2]
    condition = guard.partition("raise RuntimeError(")[0]
    assert "g is not None and IS_NVIDIA_HOPPER" in condition
    assert "TRITON_ABOVE_3_4_0 and not TRITON_ABOVE_3_7_1" in condition
    callers = {
        f"ops.{path.parent.name}.chunk"
        for path in ops.glob("*/chunk.py")
        if re.search(
            r"chunk_bwd_dqkwg\([^)]*\bg=g\b|chunk_gated_delta_rule_bwd\(", path.read_text()
        )
    }
    rows = [set(problem.parts) for problem in PROBLEMS if problem.parts]
    assert callers == {name.rpartition(".")[0] for name in set().union(*rows)}


def test_supported_versions_are_those_that_the_project_asks_for_and_pins():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in map(Requirement, re.findall(r'^  "([\w-]+>=[\d.]+)",$', text, re.M))
    }
    pins = dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", (ROOT / "requirements.txt").read_text(), re.M))
    pins["transformers"] = "5.23"
    for package, (oldest, newest) in SUPPORTED.items():
        assert pins[package] == newest
        assert package == "triton" or Version(lowest[package]) == Version(oldest)
