"""The doctor: every row of its table on invented facts, what a run asks of it, and its screen."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fla
import pytest
import torch
from accelerate import Accelerator
from packaging.requirements import Requirement
from packaging.version import Version

from flame_accel import kernels
from flame_accel.__main__ import main
from flame_accel.config import UserError
from flame_accel.diagnosis import small_model_trial, trainability
from flame_accel.diagnosis.known_problems import PROBLEMS, SUPPORTED, detect_problems
from flame_accel.diagnosis.machine import (
    Device,
    Folder,
    Machine,
    collect_machine_facts,
    visible_devices,
)
from flame_accel.diagnosis.model_parts import find_fla_parts
from flame_accel.models import load_model_config
from flame_accel.models.catalogue import registered_config_classes, tiny_config
from tests.helpers.runs import ROOT

GIB = 2**30
H200 = Device(name="NVIDIA H200", memory_bytes=140 * GIB, free_bytes=139 * GIB, capability=(9, 0))
VERSIONS: dict[str, str | None] = {
    "torch": "2.13.0",
    "triton": "3.7.1",
    "flash-linear-attention": "0.6.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "flash-attn": None,
    "mamba-ssm": None,
    "causal-conv1d": None,
    "tilelang": None,
}
GOOD = Machine(
    system="Linux",
    python="3.11.7",
    processor="AMD EPYC",
    cores=16,
    memory_bytes=128 * GIB,
    shared_memory_bytes=64 * GIB,
    platform="cuda",
    devices=(H200,),
    driver="580.1",
    driver_devices=1,
    hidden_devices=False,
    cuda="13.0",
    architectures=("sm_80", "sm_90", "compute_90"),
    nccl="2.28.9",
    versions=VERSIONS,
    triton_required_by_torch="==3.7.1",
    kernels="triton",
    compiler="/usr/bin/gcc",
    python_headers=True,
    ptxas=True,
    nvcc=False,
    interpreted=False,
    folders=(Folder(purpose="the run", path="exp", free_bytes=100 * GIB, writable=True),),
)
ON_CPU = replace(
    GOOD, platform="cpu", devices=(), driver_devices=0, kernels="torch", architectures=(), nccl=None
)
GATED = {"comba", "gated_deltanet", "mom", "precond_gated_deltanet", "yoco"}


def with_versions(machine: Machine = GOOD, **versions: str | None) -> Machine:
    changes = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(machine, versions={**machine.versions, **changes})


def with_device(**changes: Any) -> Machine:
    return replace(GOOD, devices=(replace(H200, **changes),))


def with_folder(**changes: Any) -> Machine:
    return replace(GOOD, folders=(replace(GOOD.folders[0], **changes),))


BAD_TRITON = replace(with_versions(triton="3.6.0"), triton_required_by_torch="==3.6.0")
# row -> a machine that has this problem and no other
SICK = {
    "no Triton": with_versions(ON_CPU, triton=None),
    "gated kernels on Hopper": BAD_TRITON,
    "simple GLA on Hopper": BAD_TRITON,
    "no C compiler": replace(GOOD, compiler=None),
    "no Python.h": replace(GOOD, python_headers=False),
    "no ptxas": replace(GOOD, ptxas=False),
    "interpreted kernels": replace(GOOD, interpreted=True),
    "another Triton": replace(GOOD, triton_required_by_torch="==3.6.0"),
    "GPU unknown to torch": replace(GOOD, architectures=("sm_80", "sm_100a")),
    "old GPU": replace(with_device(capability=(7, 5)), architectures=("sm_75",)),
    "torch without CUDA": replace(ON_CPU, driver_devices=1, cuda=None),
    "driver too old": replace(ON_CPU, driver_devices=1),
    "GPU in use": with_device(free_bytes=100 * GIB),
    "no NCCL": replace(GOOD, devices=(H200, H200), nccl=None),
    "small shared memory": replace(GOOD, shared_memory_bytes=2**20),
    "disk nearly full": with_folder(free_bytes=GIB // 2),
    "no writing": with_folder(writable=False),
    "old torch": with_versions(torch="2.10.1+cu128"),
    "old triton": replace(with_versions(triton="3.2.0"), triton_required_by_torch=None),
    "old flash-linear-attention": with_versions(flash_linear_attention="0.5.1"),
    "old transformers": with_versions(transformers="5.16.4"),
    "old accelerate": with_versions(accelerate="1.14.0"),
    "old datasets": with_versions(datasets="4.9.0"),
    "new torch": with_versions(torch="2.14.0.dev20261201"),
    "new triton": replace(with_versions(triton="3.8.0"), triton_required_by_torch="==3.8.0"),
    "new flash-linear-attention": with_versions(flash_linear_attention="0.7.0"),
    "new transformers": with_versions(transformers="6.0.0"),
    "new accelerate": with_versions(accelerate="1.16.0"),
    "new datasets": with_versions(datasets="5.3.1"),
}


def test_a_good_machine_has_no_problem():
    hidden = replace(ON_CPU, driver_devices=1, hidden_devices=True)
    patched = with_versions(torch="2.13.2+cu130", triton="3.7.9", transformers="5.23.4")
    for machine in (GOOD, ON_CPU, hidden):
        assert detect_problems(machine) == []
    assert detect_problems(replace(patched, triton_required_by_torch=">=3.7")) == []


def test_every_row_has_a_machine():
    assert {problem.name for problem in PROBLEMS} == set(SICK)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_a_row_applies_where_it_should_and_alone(problem):
    machine = SICK[problem.name]
    findings = detect_problems(machine, parts=frozenset(list(problem.parts or ())[:1]))
    assert [finding.name for finding in findings] == [problem.name]
    assert findings[0].blocks_training == problem.blocks_training
    for text in (findings[0].description, findings[0].remedy):
        assert text and "{" not in text and "None" not in text


@pytest.mark.parametrize(
    ("capability", "architectures", "known"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 9), ("sm_80", "sm_90"), True),
        ((12, 0), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((7, 0), ("sm_75", "compute_75"), False),
        ((9, 0), (), True),
    ],
)
def test_machine_code_runs_within_a_major_version_and_ptx_on_newer_devices(
    capability, architectures, known
):
    machine = replace(with_device(capability=capability), architectures=architectures)
    found = {finding.name for finding in detect_problems(machine)}
    assert ("GPU unknown to torch" not in found) == known


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"triton": "3.6.0"}, GATED),
        ({"triton": "3.4.0"}, GATED),
        ({"triton": "3.7.0"}, GATED),
        ({"triton": "3.7.1"}, set()),
        ({"triton": "3.3.1"}, set()),
        # fla's tilelang kernel does not serve simple GLA
        ({"triton": "3.6.0", "tilelang": "0.1.9"}, {"yoco"}),
    ],
)
def test_hopper_with_a_bad_triton_refuses_the_gated_models(changes, refused):
    machine = replace(with_versions(**changes), nvcc=True)
    assert refused == {
        model_type
        for model_type in registered_config_classes()
        if any(
            finding.blocks_training and "Hopper" in finding.name
            for finding in trainability.find_training_problems(machine, tiny_config(model_type))
        )
    }


@pytest.mark.parametrize(
    "machine",
    [
        replace(BAD_TRITON, devices=(replace(H200, name="A100", capability=(8, 0)),)),
        replace(BAD_TRITON, kernels="torch"),
    ],
    ids=["another GPU", "PyTorch kernels"],
)
def test_elsewhere_that_triton_trains_them(machine):
    assert not any(
        f.blocks_training
        for f in trainability.find_training_problems(machine, tiny_config("gated_deltanet"))
    )


def test_a_part_that_the_config_switches_off_does_not_count():
    gated = tiny_config("gated_deltaproduct", use_forget_gate=True)
    plain = tiny_config("gated_deltaproduct", use_forget_gate=False)
    assert any(
        finding.blocks_training
        for finding in trainability.find_training_problems(BAD_TRITON, gated)
    )
    assert not any(
        finding.blocks_training
        for finding in trainability.find_training_problems(BAD_TRITON, plain)
    )


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


def test_parts_are_the_same_under_both_kinds_of_kernels():
    with_torch = {
        name: find_fla_parts(tiny_config(name)) for name in ("gla", "gated_deltanet", "yoco")
    }
    kernels.uninstall()
    try:
        for name, parts in with_torch.items():
            assert find_fla_parts(tiny_config(name)) >= parts - {"layers.attn"}
    finally:
        kernels.install("torch")
    assert {"layers.gla", "ops.gla.chunk.chunk_gla"} <= with_torch["gla"]


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


def test_memory_and_disk_are_compared_with_the_size_of_the_model():
    config = tiny_config("gla")
    two = replace(GOOD, devices=(H200, H200))

    def names(machine: Machine, parameters: int) -> list[str]:
        return [
            finding.name
            for finding in trainability.find_training_problems(machine, config, parameters)
        ]

    assert names(GOOD, 10**9) == []
    assert names(GOOD, 10**10) == ["too large", "little disk"]
    assert names(two, 10**10) == ["too large for one GPU", "little disk"]
    assert names(ON_CPU, 10**10) == ["too large", "little disk"]


def test_kernels_that_take_no_fp32_are_known():
    def names(model_type: str, machine: Machine, precision: str) -> list[str]:
        config = tiny_config(model_type)
        found = trainability.find_training_problems(machine, config, precision=precision)
        return [finding.name for finding in found]

    for model_type in ("delta_net", "gated_deltaproduct", "parallax"):
        assert names(model_type, GOOD, "float32") == ["no float32"]
        assert names(model_type, GOOD, "bfloat16") == []
        assert names(model_type, ON_CPU, "float32") == []
    assert names("gated_deltanet", GOOD, "float32") == []


def test_a_run_is_refused_before_tokenizer_and_data_are_touched(flags, monkeypatch):
    from flame_accel import train
    from flame_accel.config import parse

    monkeypatch.setattr(
        trainability, "collect_machine_facts", lambda *arguments: SICK["no C compiler"]
    )
    monkeypatch.setattr(train, "load_tokenizer", lambda *arguments: pytest.fail("too late"))
    monkeypatch.setattr(train, "open_data", lambda *arguments: pytest.fail("too late"))
    with pytest.raises(UserError, match="no C compiler") as caught:
        train.build_components(parse(flags()), Accelerator(cpu=True))
    assert caught.value.remedy and "gcc" in caught.value.remedy


def test_warnings_do_not_stop_a_run(monkeypatch):
    monkeypatch.setattr(
        trainability, "collect_machine_facts", lambda *arguments: SICK["disk nearly full"]
    )
    (warning,) = trainability.check_machine_can_train(tiny_config("gla"), "auto", "exp", "bfloat16")
    assert "less than 1 GiB is free for the run (exp)" in warning


def test_a_known_defect_of_the_model_stops_a_run(monkeypatch):
    monkeypatch.setattr(trainability, "known_issues", lambda *arguments: {"trains": "it is broken"})
    with pytest.raises(UserError, match="it is broken"):
        trainability.check_machine_can_train(tiny_config("gla"), "auto", "exp", "bfloat16")


def test_looking_at_this_machine_starts_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("started a program"))
    machine = collect_machine_facts("auto", {"the run": tmp_path / "not" / "yet"})
    assert machine.versions["torch"] is not None
    assert machine.cores >= 1 and machine.memory_bytes > GIB // 2
    assert machine.kernels == ("triton" if kernels.triton_has_device() else "torch")
    assert machine.folders[0].writable and machine.folders[0].free_bytes > 0
    assert collect_machine_facts("torch", {}).kernels == "torch"
    assert torch.cuda.is_initialized() is False


@pytest.mark.parametrize("hip", [None, "7.1"])
def test_devices_are_described_as_torch_sees_them(hip, monkeypatch):
    properties = SimpleNamespace(name="GPU", total_memory=8 * GIB, major=9, minor=0)
    module = SimpleNamespace(
        get_device_properties=lambda index: properties, mem_get_info=lambda index: (GIB, 8 * GIB)
    )
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    kind, devices = visible_devices(free_memory=False)
    expected = Device(
        name="GPU", memory_bytes=8 * GIB, free_bytes=None, capability=None if hip else (9, 0)
    )
    assert kind == ("hip" if hip else "cuda") and devices == (expected, expected)
    assert visible_devices(free_memory=True)[1][0].free_bytes == GIB


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*_340M.json")), ids=lambda path: path.stem
)
def test_the_small_version_keeps_widths_and_kinds_of_layers(path):
    config = load_model_config(str(path))
    before = config.to_dict()
    small = small_model_trial.shrink_config(config, "cuda")
    assert config.to_dict() == before
    assert (small.num_hidden_layers, small.hidden_size) == (2, config.hidden_size)
    assert small.to_dict().get("head_dim") == before.get("head_dim")
    if before.get("attn"):
        assert small.attn == {**config.attn, "layers": [1]}
    assert type(small) is type(config)


def test_a_small_version_that_is_still_large_becomes_the_tiny_model():
    config = load_model_config(str(ROOT / "configs/gla_1.3B.json"))
    assert small_model_trial.shrink_config(config, "cuda").hidden_size == 2048
    assert (
        small_model_trial.shrink_config(config, "cpu").hidden_size == tiny_config("gla").hidden_size
    )


def test_kernels_that_agree_and_kernels_that_do_not(monkeypatch):
    """PyTorch stands in for Triton; the second time it is wrong by a factor."""
    kinds = []
    monkeypatch.setattr(kernels, "install", kinds.append)
    config = tiny_config("gla")
    agreeing = list(small_model_trial.compare_triton_with_torch(config, "cpu"))
    assert [c.what for c in agreeing] == [
        f"{what} in {dtype}"
        for dtype in ("float32", "bfloat16")
        for what in ("logits", "gradients")
    ]
    assert all(c.holds and c.error == 0 for c in agreeing)
    assert kinds == ["torch", "triton", "triton"] * 2

    compute = small_model_trial._compute

    def wrong(kind: str, *arguments: Any) -> dict[str, torch.Tensor]:
        factor = {"torch": 1.0, "triton": 1.2}[kind]
        return {what: value * factor for what, value in compute(kind, *arguments).items()}

    monkeypatch.setattr(small_model_trial, "_compute", wrong)
    assert not any(c.holds for c in small_model_trial.compare_triton_with_torch(config, "cpu"))
    monkeypatch.setattr(small_model_trial, "_compute", lambda *arguments: 1 / 0)
    broken = list(small_model_trial.compare_triton_with_torch(config, "cpu"))
    assert [c.reason for c in broken] == ["ZeroDivisionError: division by zero"] * 2
    assert not any(c.holds for c in broken)


def test_the_doctor_names_every_model(capsys, tmp_path):
    main(["doctor", "--job.dump_folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line and line[0] != " "] == [
        "machine",
        "known problems",
        "models",
    ]
    assert set(registered_config_classes()) <= set(re.findall(r"\w+", printed))
    assert "\033" not in printed and max(map(len, printed.splitlines())) <= 100


def test_the_doctor_tries_a_model_out(capsys, tiny_model, tmp_path):
    main(["doctor", "--model.config", str(tiny_model), "--job.dump_folder", str(tmp_path)])
    printed = capsys.readouterr().out
    for law in ("trains", "reloads", "generates", "keeps documents apart"):
        assert re.search(rf"ok +{law} \(", printed)
    assert re.search(r"kernels +recurrence\.gla", printed)


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
