"""The exit codes that the README promises, of commands.

Those of runs are tested in test_bad_inputs.py, those of signals in unit/commands/test_train.py.
"""

import re
import shutil
from pathlib import Path

from flame_accel.__main__ import main
from tests.helpers.hub_server import HubServer
from tests.helpers.runs import ROOT

CODES = {
    0: ("--version", "push -h", "report RUN", "export RUN OUT"),
    1: (
        "export EMPTY OUT",
        "push DAMAGED owner/name",
        "push EMPTY owner/name",
        "push WEIGHTLESS owner/name",
        "export DAMAGED OUT",
        "generate DAMAGED --prompt x",
    ),
    2: (
        "nonsense",
        "push --nonsense",
        "push nowhere owner/name",
        "push RUN a/b/c",
        "export nowhere OUT",
        "export RUN RUN",
        "generate nowhere --prompt x",
        "generate RUN --prompt x --device gpu",
        "report nowhere",
        "train --training.steps none",
        "train --training.stepz 3",
    ),
}


def exit_code(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_commands_end_with_the_code_of_what_happened(finished: Path, tmp_path: Path):
    places = {"RUN": finished}
    for name in ("OUT", "EMPTY", "WEIGHTLESS", "DAMAGED"):
        places[name] = tmp_path / name
    places["EMPTY"].mkdir()
    shutil.copytree(finished / "hf", places["WEIGHTLESS"])
    (places["WEIGHTLESS"] / "model.safetensors").unlink()
    shutil.copytree(finished / "checkpoint/step-4", places["DAMAGED"])
    (places["DAMAGED"] / "data.json").write_text("{}")
    found = {
        line: exit_code([str(places.get(word, word)) for word in line.split()])
        for code in (2, 1, 0)
        for line in CODES[code]
    }
    assert found == {line: code for code in (2, 1, 0) for line in CODES[code]}


def test_a_hub_that_refuses_is_a_mistake_and_one_that_does_not_answer_is_none(
    local_hub: HubServer, finished: Path
):
    assert exit_code(["push", str(finished), "stranger/model"]) == 2
    local_hub.stop()
    assert exit_code(["push", str(finished), "tester/model"]) == 1


def test_the_page_of_the_run_folder_lists_them():
    text = (ROOT / "docs/run_folder.md").read_text(encoding="utf-8")
    section = text.partition("## Exit codes")[2].partition("\n#")[0]
    assert re.findall(r"^\| (\d+|128 \+ N) \|", section, re.M) == ["0", "1", "2", "75", "128 + N"]
