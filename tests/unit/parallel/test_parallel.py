"""Laws of what several ranks do together: the norm of a gradient, waiting, what is promised."""

import os
import re
import socket

import pytest
import torch
from torch import nn

from flame_accel.config import CommConfig, TrainingConfig, UserError
from flame_accel.parallel import build_accelerator, clip_gradients, describe_topology
from flame_accel.parallel.timeouts import enable_flight_recorder, explain_timeout
from tests.helpers.runs import ROOT, launch

PROGRAMS = ROOT / "tests/helpers/rank_programs.py"


def run_ranks(program: str, config: str, processes: int, *more: str, fails: bool = False) -> str:
    """Runs a function of `rank_programs` on every rank and returns what they printed."""
    return launch(
        [program, *more], config=config, processes=processes, fails=fails, script=PROGRAMS
    )


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Builds an Accelerator in this process, on the CPU and in an environment of its own."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "TORCH_")):
            del os.environ[name]
    os.environ.update(ACCELERATE_USE_CPU="true", ACCELERATE_MIXED_PRECISION="no")
    reset()

    def build(comm: CommConfig | None = None, **environment: str):
        os.environ.update(environment)
        return build_accelerator(
            TrainingConfig(),
            comm or CommConfig(),
            run_folder=str(tmp_path),
            tensorboard_folder=str(tmp_path),
            trackers=[],
        )

    yield build
    reset()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.distributed
def test_gradients_of_all_kinds_have_one_norm_and_are_clipped_to_it():
    run_ranks("mixed_gradients", "fsdp2", 4)


def test_one_process_clips_as_torch_does(alone):
    accelerator = alone()
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    norm = clip_gradients(accelerator, model, 0.5)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(other.parameters(), 0.5))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_bound_of_0_only_measures(alone):
    accelerator, model = alone(), nn.Linear(5, 3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    assert clip_gradients(accelerator, model, 0.0).item() == pytest.approx(100 * 18**0.5)
    assert all((p.grad == 100).all() for p in model.parameters() if p.grad is not None)


def test_clipping_asks_no_device_for_a_value(alone):
    """The meta device has no values to give."""
    accelerator, model = alone(), nn.Linear(5, 3, device="meta")
    accelerator.state.device = torch.device("meta")
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    assert clip_gradients(accelerator, model, 1.0).is_meta


def test_a_gradient_that_is_not_finite_has_no_finite_norm(alone):
    accelerator, model = alone(), nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[1.0, torch.nan]])
    assert not clip_gradients(accelerator, model, 1.0).isfinite()


@pytest.mark.covers_option("comm.train_timeout_seconds")
@pytest.mark.distributed
@pytest.mark.parametrize("program", ["late_rank", "slow_files"])
def test_a_rank_that_never_comes_ends_the_run_in_the_shortened_time(program):
    """comm.train_timeout_seconds, also in a mesh; a rank that is long at its files ends nothing."""
    printed = run_ranks(program, "hsdp", 4, fails=True)
    waited = re.search(r"rank 1 waited ([0-9.]+) s", printed)
    assert waited and 0.7 < float(waited[1]) < 5
    assert "another process of the run did not arrive in time" in printed
    assert "Traceback" not in printed


@pytest.mark.covers_option("comm.init_timeout_seconds")
def test_a_rank_that_never_starts_ends_the_run_in_the_time_for_starting(alone):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    comm = CommConfig(init_timeout_seconds=1)
    with pytest.raises(UserError, match="did not arrive in time") as caught, explain_timeout(comm):
        alone(comm, **ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert "comm.init_timeout_seconds" in str(caught.value)


def test_what_is_no_matter_of_waiting_is_passed_on():
    with pytest.raises(RuntimeError, match="out of memory"), explain_timeout(CommConfig()):
        raise RuntimeError("out of memory")
    with pytest.raises(UserError, match="has ended"), explain_timeout(CommConfig()):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")


@pytest.mark.covers_option("comm.trace_buf_size")
def test_the_recorder_of_exchanges_has_the_size_that_was_asked_for(alone, tmp_path):
    enable_flight_recorder(CommConfig(trace_buf_size=77), "run")
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "77"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == "run/comm_trace_"


def test_the_recorder_of_exchanges_can_be_off_and_one_process_has_none(alone):
    alone()
    assert "TORCH_FR_BUFFER_SIZE" not in os.environ
    enable_flight_recorder(CommConfig(trace_buf_size=0), "run")
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "0"
    assert "TORCH_NCCL_DUMP_ON_TIMEOUT" not in os.environ


def test_one_process_is_not_wrapped_even_by_a_launcher_of_several(alone):
    rank = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    accelerator = alone(
        **rank,
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
    )
    assert describe_topology(accelerator) == "1 x cpu, one process, fp32"
    model = nn.Linear(2, 2)
    assert accelerator.prepare(model) is model
    assert not torch.distributed.is_initialized()


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
def test_the_realised_mesh_is_described_in_one_line(config, processes, line):
    assert run_ranks("describe", config, processes).splitlines()[-1] == line
