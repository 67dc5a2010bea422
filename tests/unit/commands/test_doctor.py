"""The doctor: what it prints of this machine and its models, and its exit codes."""

import json
import re
from dataclasses import replace

import pytest
import torch

from flame_accel import kernels
from flame_accel.__main__ import main
from flame_accel.commands.doctor import describe_kernel_packages
from flame_accel.models.catalogue import fla_config_classes
from tests.helpers.machines import GOOD, H200, SICK, VERSIONS
from tests.helpers.runs import ROOT


def test_the_doctor_names_every_model(capsys, tmp_path):
    main(["doctor", "--job.dump_folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line and line[0] != " "] == [
        "machine",
        "known problems",
        "models",
    ]
    assert set(fla_config_classes()) <= set(re.findall(r"\w+", printed))
    assert "\033" not in printed and max(map(len, printed.splitlines())) <= 100


def test_the_doctor_tries_a_model_out(capsys, tiny_model, tmp_path):
    main(["doctor", "--model.config", str(tiny_model), "--job.dump_folder", str(tmp_path)])
    printed = capsys.readouterr().out
    for law in ("trains", "reloads", "generates", "keeps documents apart"):
        assert re.search(rf"ok +{law} \(", printed)
    assert re.search(r"kernels +recurrence\.gla", printed)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "flash-attn-4 used for softmax attention"),
        ({"kernels": "torch"}, "flash-attn-4 is for Hopper GPUs, not used for softmax attention"),
        (
            {"devices": (replace(H200, capability=(8, 0)),)},
            "flash-attn-4 is for Hopper GPUs, not used for softmax attention",
        ),
        ({"versions": VERSIONS}, None),
    ],
)
def test_packages_with_kernels_are_named_where_they_are_installed(changes, text):
    machine = replace(GOOD, **({"versions": VERSIONS | {"flash-attn-4": "4.0.0"}} | changes))
    lines = [line.text for line in describe_kernel_packages(machine)]
    assert lines == ([] if text is None else [text])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_model_that_cannot_train_ends_with_exit_code_1(
    as_json, capsys, monkeypatch, tiny_model, tmp_path
):
    from flame_accel.diagnosis.conformance import laws

    def broken(model: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(laws.LAWS, "trains", broken)
    options = ["--model.config", str(tiny_model), "--job.dump_folder", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *options, *["--json"] * as_json])
    printed = capsys.readouterr().out
    assert caught.value.code == 1
    if as_json:
        document = json.loads(printed)
        assert document["trains"] is False
        assert document["machine"]["versions"]["torch"] == torch.__version__
        printed = json.dumps(document["trial of a small one"])
    assert "no such kernel" in printed


def test_a_sick_machine_is_told_before_fla_is_imported(capsys, monkeypatch):
    from flame_accel.diagnosis import machine

    monkeypatch.setattr(machine, "collect_machine_facts", lambda *a, **k: SICK["no Triton"])
    monkeypatch.setattr(kernels, "install", lambda kind: pytest.fail("imports fla"))
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 1
    assert re.search(r"problem +Triton is not installed", capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments", [["--model.config", "missing.json"], ["--model.kernels", "cuda"], ["--modell"]]
)
def test_a_wrong_command_line_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("family", "comparisons"),
    # fla's delta rule takes no fp32
    [("gla", 4), ("delta_net", 2)],
)
def test_triton_kernels_agree_with_pytorch_kernels_on_a_gpu(family, comparisons, capsys):
    main(["doctor", "--model.config", str(ROOT / f"configs/{family}_340M.json")])
    printed = capsys.readouterr().out
    found = re.findall(r"ok +(?:logits|gradients) in b?float\d+: Triton and", printed)
    assert len(found) == comparisons
    assert re.search(r"ok +trains \(", printed)
