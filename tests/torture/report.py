"""The report of the experiments: counts, what they were made on, and what did not survive."""

import html
import json
import os
import platform
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from flame_accel.observe.environment import git_commit_and_dirty, package_versions
from tests.torture.experiments import EXPERIMENTS
from tests.torture.laboratory import Outcome, summarize

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>What runs survive</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ padding: .25em 1.2em .25em 0; border-bottom: 1px solid #8884; text-align: left;
  vertical-align: top }}
td.n, th.n {{ text-align: right; white-space: nowrap }}
td.bad {{ color: #b00 }}
pre {{ white-space: pre-wrap }}
</style>
<h1>What runs survive</h1>
<p>Each trial does something to a training run and starts it again. It is survived if the run ends
with the weights and losses of one that was left alone, bit for bit, or says in a sentence why it
does not go on; and if it prints no traceback.</p>
<table>
<tr><th>experiment<th>what is done<th class=n>survived<th class=n>of<th>of which<th class=n>s each
{rows}
</table>
<h2>Not survived</h2>
{failures}
<h2>Made with</h2>
<table>
{facts}
</table>
</html>
"""


class Report:
    """The outcomes so far, and where they are written.

    Args:
        folder: For torture.json and torture.html; None writes nothing.
        seed: Of the trials.
        jobs: Trials at once.
        arguments: Of the command line.

    Attributes:
        outcomes: Of all trials so far.
        skipped: Why experiments could not be made, by name.
    """

    def __init__(self, folder: Path | None, seed: int, jobs: int, arguments: str) -> None:
        self.folder = folder
        self.outcomes: list[Outcome] = []
        self.skipped: dict[str, str] = {}
        self._begin, self._seed = time.monotonic(), seed
        git = git_commit_and_dirty() or {}
        versions = {"python": platform.python_version(), **package_versions()}
        self._facts = {
            "command": f"python -m tests.torture {arguments}",
            "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "commit": f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}",
            "packages": ", ".join(
                f"{name} {version}" for name, version in versions.items() if version
            ),
            "seed": seed,
            "trials at once": jobs,
        }

    def write(self) -> None:
        """Writes both files."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {**self._facts, "minutes": round((time.monotonic() - self._begin) / 60, 1)}
        table = summarize(self.outcomes)
        experiments = {
            name: self._describe(name, *table[name]) for name in EXPERIMENTS if name in table
        }
        failures = [self._describe_failure(each) for each in self.outcomes if each.problems]
        content = {
            "facts": facts,
            "experiments": experiments,
            "skipped": self.skipped,
            "not_survived": failures,
        }
        (self.folder / "torture.json").write_text(json.dumps(content, indent=1) + "\n")
        page = PAGE.format(
            rows="\n".join(
                [_experiment_row(name, entries) for name, entries in experiments.items()]
                + [_row(name, f"skipped: {why}") for name, why in self.skipped.items()]
            ),
            failures="\n".join(map(_failure_paragraph, failures)) or "<p>Nothing.</p>",
            facts="\n".join(_row(name, str(value)) for name, value in facts.items()),
        )
        (self.folder / "torture.html").write_text(page)

    def _describe(self, name: str, survived: int, total: int) -> dict[str, object]:
        of_it = [outcome for outcome in self.outcomes if outcome.experiment == name]
        return {
            "what": EXPERIMENTS[name].title,
            "survived": survived,
            "of": total,
            "kinds": dict(Counter(outcome.kind for outcome in of_it if outcome.kind).most_common()),
            "seconds_each": round(sum(outcome.seconds for outcome in of_it) / total, 2),
        }

    def _describe_failure(self, outcome: Outcome) -> dict[str, object]:
        return {
            "experiment": outcome.experiment,
            "what": f"{outcome.kind}, {outcome.what}",
            "problems": outcome.problems,
            "repeat": f"python -m tests.torture --only {outcome.experiment} "
            f"--seed {self._seed} --trial {outcome.number}",
        }


def _experiment_row(name: str, entries: dict[str, object]) -> str:
    kinds = entries["kinds"]
    assert isinstance(kinds, dict)
    return _row(
        name,
        str(entries["what"]),
        *(f"{entries[key]:,}" for key in ("survived", "of")),
        "; ".join(f"{kind}: {count:,}" for kind, count in kinds.items()),
        str(entries["seconds_each"]),
        is_bad=entries["survived"] != entries["of"],
    )


def _row(*cells: str, is_bad: bool = False) -> str:
    return "<tr>" + "".join(
        f'<td class="{"n" if place in (2, 3, 5) else ""}{" bad" if is_bad else ""}">'
        f"{html.escape(cell)}"
        for place, cell in enumerate(cells)
    )


def _failure_paragraph(failure: dict[str, object]) -> str:
    problems = failure["problems"]
    assert isinstance(problems, list)
    return (
        f"<p>{html.escape(str(failure['experiment']))}: {html.escape(str(failure['what']))}"
        f"<pre>{html.escape('; '.join(problems))}</pre>"
        f"<pre>{html.escape(str(failure['repeat']))}</pre>"
    )
