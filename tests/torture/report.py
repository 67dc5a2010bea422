"""The report of the experiments: counts, and every run that did not survive."""

import html
import json
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from flame_accel.observe.run_folder import git_commit_and_dirty, package_versions
from tests.torture.laboratory import Outcome, summarize

PAGE = """\
<!doctype html><meta charset="utf-8"><title>What runs survive</title>
<style>body{{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}
td,th{{padding:.2em 1em;border-bottom:1px solid #8884;text-align:left}}
td.n{{text-align:right}}.bad{{color:#c00}}</style>
<h1>What runs survive</h1><p>{facts}</p>
<table><tr><th>experiment<th>survived<th>of<th>seconds a run</tr>{rows}</table>
<h2>Not survived</h2>{failures}
"""


def write_report(folder: Path, outcomes: list[Outcome]) -> None:
    """Writes torture.json and torture.html."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "git": git_commit_and_dirty(),
        "packages": package_versions(),
    }
    table = summarize(outcomes)
    content = {
        **facts,
        "experiments": {
            name: {"survived": survived, "of": total} for name, (survived, total) in table.items()
        },
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    (folder / "torture.json").write_text(json.dumps(content, indent=1) + "\n")
    rows = ""
    for name, (survived, total) in table.items():
        seconds = sum(outcome.seconds for outcome in outcomes if outcome.experiment == name)
        mark = "" if survived == total else ' class="bad"'
        rows += (
            f"<tr{mark}><td>{html.escape(name)}<td class=n>{survived}<td class=n>{total}"
            f"<td class=n>{seconds / total:.1f}</tr>"
        )
    failures = "".join(
        f"<p class=bad>{html.escape(outcome.experiment)}: {html.escape(outcome.what)}: "
        f"{html.escape('; '.join(outcome.problems))}</p>"
        for outcome in outcomes
        if outcome.problems
    )
    page = PAGE.format(
        facts=html.escape(json.dumps(facts)), rows=rows, failures=failures or "<p>nothing</p>"
    )
    (folder / "torture.html").write_text(page)
