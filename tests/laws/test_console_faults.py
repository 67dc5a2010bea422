"""Law: no console and no home folder ends or mutes a run; it trains, saves, exports and logs.

The mechanisms are tested in unit/test_standard_streams.py and unit/test_cache_folders.py, each in
fresh processes. Here whole runs meet the same faults, on every rank.
"""

import json
import shlex
import subprocess

import pytest

from tests.helpers.runs import ROOT, launch, launch_command, launch_environment, read_records

# what a process finds when it starts, then train.py as its launcher starts it
START = f"""
import os, runpy, sys
{{fault}}
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""
REPLACE = "for standard in (1, 2): os.dup2({descriptor}, standard)"
FAULTS = {
    "closed": "os.close(1); os.close(2); sys.stdout = sys.stderr = None",
    "full": REPLACE.format(descriptor='os.open("/dev/full", os.O_WRONLY)'),
    "nobody reads": "read, write = os.pipe(); os.close(read); "
    + REPLACE.format(descriptor="write").replace("for", "\nfor"),
    "ascii": "for stream in (sys.stdout, sys.stderr): "
    'stream.reconfigure(encoding="ascii", errors="strict")',
    "no home": "for name in [n for n in os.environ if n.startswith(('HF_', 'XDG_'))]: "
    'os.environ.pop(name)\nos.environ.update(HOME="/proc/nowhere", HF_HUB_OFFLINE="1")',
}
WORDS = "gr\u00fc\u00df \u65e5\u672c"


@pytest.mark.parametrize(
    ("fault", "processes"),
    [
        *((fault, 1) for fault in FAULTS),
        pytest.param("nobody reads", 2, marks=pytest.mark.distributed),
    ],
)
def test_a_run_ends_well_whatever_its_console_and_home_are(flags, tmp_path, fault, processes):
    data = tmp_path / WORDS / "train.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps({"text": f"{WORDS} {i} " * 20}) + "\n" for i in range(40)))
    script = tmp_path / "start.py"
    script.write_text(START.format(fault=FAULTS[fault]))
    options = {
        "training.dataset": data,
        "training.steps": 4,
        # metrics are modules that are loaded through a cache
        "evaluation.dataset": data,
        "evaluation.held_out_share": 0.2,
        "evaluation.prompt": WORDS,
        # warnings and a progress bar of other packages
        "training.num_workers": 1,
        "job.print_args": True,
    }
    printed = launch(
        flags(**options),
        config="ddp" if processes > 1 else "cpu",
        processes=processes,
        script=script,
    )
    run = tmp_path / "run"
    assert [record["step"] for record in read_records(run)] == [1, 2, 3, 4]
    assert read_records(run)[-1]["eval/loss"] > 0
    assert (run / "checkpoint/step-4/manifest.json").is_file()
    assert (run / "hf/model.safetensors").is_file() and (run / "report.html").is_file()
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert log.count(WORDS) >= 3 and "step 4/4 100%  loss" in log and "report:" in log
    shown = {"ascii": WORDS.encode("ascii", "backslashreplace").decode(), "no home": WORDS}
    assert (f"data: {tmp_path}/{shown.get(fault)}" in printed) == (fault in shown)
    assert ("cannot be written to" in printed) == (fault == "no home")


@pytest.mark.slow
def test_a_fresh_process_without_home_and_console_trains_validates_and_exports(flags, tmp_path):
    options = {"metrics.enable_tensorboard": True, "evaluation.sets": "a=python-stdlib"}
    words = [*launch_command("cpu", 1), *flags(**options, **{"evaluation.max_tokens": 999})]
    environment = launch_environment(HOME="/proc/nowhere")
    for variable in ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(variable, None)
    command = f"{shlex.join(words)} >/dev/full 2>&-"
    assert subprocess.run(["bash", "-c", command], env=environment).returncode == 0
    assert (tmp_path / "run/hf/model.safetensors").is_file()
    assert read_records(tmp_path / "run")[-1]["eval/a/accuracy"] >= 0
