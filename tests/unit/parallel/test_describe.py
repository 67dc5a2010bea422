"""The one line about devices, engine, mesh and precision."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.device_mesh import DeviceMesh

from flame_accel.parallel.describe import compute_dtype, mesh_degrees
from tests.helpers.process_groups import fake_mesh
from tests.helpers.runs import ROOT, launch

PROGRAMS = ROOT / "tests/helpers/rank_programs.py"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("config", "processes", "line"),
    [
        ("hsdp", 4, "4 x cpu, HSDP: 2 replicas x 2 shards, parameters float32, reduction float32"),
        (
            "fsdp2_offload",
            2,
            "2 x cpu, FSDP2: 2 shards, parameters float32, reduction float32, kept in CPU memory",
        ),
        (
            "fsdp2_offload",
            1,
            "1 x cpu, FSDP2, parameters float32, reduction float32, kept in CPU memory",
        ),
        ("ddp", 2, "2 x cpu, DDP: 2 replicas, fp32"),
    ],
)
def test_engine_mesh_and_precision_are_described_in_one_line(config, processes, line):
    printed = launch(["describe"], config=config, processes=processes, script=PROGRAMS)
    assert printed.splitlines()[-1] == line


def accelerator(*, is_fsdp2: bool, mesh: DeviceMesh | None = None) -> Any:
    return SimpleNamespace(
        is_fsdp2=is_fsdp2,
        distributed_type="FSDP",
        num_processes=6,
        state=SimpleNamespace(device_mesh=mesh),
    )


def test_without_a_mesh_all_ranks_are_replicas_or_shards():
    assert mesh_degrees(accelerator(is_fsdp2=False)) == (6, 1, 1)
    assert mesh_degrees(accelerator(is_fsdp2=True)) == (1, 6, 1)


def test_dimensions_of_a_mesh_are_found_by_name():
    with fake_mesh(3, 2, names=("dp_shard", "tp")) as mesh:
        assert mesh_degrees(accelerator(is_fsdp2=True, mesh=mesh)) == (1, 3, 2)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("no", "float32")])
def test_the_compute_dtype_is_that_of_mixed_precision(build_on_cpu, precision, dtype):
    assert compute_dtype(build_on_cpu(ACCELERATE_MIXED_PRECISION=precision)) == dtype
