"""What a checkpoint contains: everything, or only weights where asked; what loading it restores."""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoConfig, AutoModelForCausalLM

from flame_accel.checkpoint import CheckpointFolder, TrainState
from flame_accel.checkpoint.contents import load_checkpoint
from flame_accel.checkpoint.snapshot import take_snapshot, write_snapshot
from flame_accel.checkpoint.tensor_storage import initialize_optimizer_state
from flame_accel.config import UserError
from flame_accel.data.cursors import LaneCursor
from flame_accel.data.loading.stream_state import build_rank_state
from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.parallel import HostGroup
from flame_accel.training.rng_state import get_all_rng_states_as_json, set_all_rng_states
from tests.helpers.checkpoints import equal_tensors, list_checkpoints, read_weights
from tests.helpers.runs import WITHOUT_SAMPLE, read_losses, read_records

WEIGHTS_ONLY = {"checkpoint.model_weights_only": True, "checkpoint.export_dtype": "bfloat16"}


@pytest.mark.covers_option("checkpoint.model_weights_only")
def test_the_last_checkpoint_can_contain_only_weights_in_the_dtype_of_the_export(
    train_here, flags, tmp_path
):
    argv = flags(**WITHOUT_SAMPLE, **WEIGHTS_ONLY)
    train_here(argv)
    run = tmp_path / "run"
    last, full = run / "checkpoint/step-8", run / "checkpoint/step-4"
    assert {weight.dtype for weight in read_weights(last).values()} == {torch.bfloat16}
    assert {weight.dtype for weight in read_weights(full).values()} == {torch.float32}
    assert equal_tensors(read_weights(last), read_weights(run / "hf"))
    names = {path.name for path in last.iterdir()}
    assert not names & {"optimizer", "data.json", "ranks.json", "rank-0.json"}
    assert (full / "optimizer").is_dir()
    # a finished run is finished
    exported, records = read_weights(run / "hf"), read_records(run)
    train_here(argv)
    assert equal_tensors(read_weights(run / "hf"), exported) and read_records(run) == records


@pytest.mark.covers_option("checkpoint.create_seed_checkpoint")
def test_a_seed_checkpoint_contains_the_first_weights_and_starts_the_same_run(
    train_here, flags, tmp_path, finished
):
    seed = flags(**WITHOUT_SAMPLE, **{"checkpoint.create_seed_checkpoint": True})
    train_here(seed)
    run = tmp_path / "run"
    assert list_checkpoints(run) == ["step-0"]
    assert not (run / "hf").exists() and read_records(run) == []
    with pytest.raises(UserError, match="already has a checkpoint, of step 0"):
        train_here(seed)
    train_here(flags(**WITHOUT_SAMPLE, **{"checkpoint.load_step": 0}))
    assert read_losses(run) == read_losses(finished)
    assert equal_tensors(read_weights(run / "hf"), read_weights(finished / "hf"))


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    before = get_all_rng_states_as_json()
    yield Accelerator(cpu=True)
    set_all_rng_states(before)
    AcceleratorState._reset_state(reset_partial_state=True)


def draw_numbers() -> list[float]:
    """One number of each generator of this process."""
    return [random.random(), np.random.rand(), torch.rand(()).item()]


def test_every_rank_draws_the_numbers_again_that_it_drew_after_the_save(
    accelerator, tiny_model, tmp_path, monkeypatch
):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    initialize_optimizer_state(optimizer)

    def seed_generators(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    seed_generators(1)
    snapshot = take_snapshot(
        accelerator,
        TrainState(step=3),
        model=model,
        optimizer=optimizer,
        tokenizer=load_tokenizer("byte", False),
        stream_state=build_rank_state(
            {}, rows_per_step=1, steps=3, first_lane=0, cursors=[LaneCursor()]
        ),
        meter_state={"sums": [], "max_loss": None},
    )
    folder = CheckpointFolder(tmp_path, keep_latest_k=0)
    checkpoint = write_snapshot(snapshot, folder, HostGroup(accelerator), is_main_process=True)
    numbers_of_rank_0 = draw_numbers()
    # what a second rank would have written
    seed_generators(2)
    (checkpoint / "rank-1.json").write_text(json.dumps(get_all_rng_states_as_json()))
    numbers_of_rank_1 = draw_numbers()
    assert not set(numbers_of_rank_0) & set(numbers_of_rank_1)
    for rank, expected in enumerate((numbers_of_rank_0, numbers_of_rank_1)):
        monkeypatch.setattr(Accelerator, "process_index", rank)
        seed_generators(3)
        load_checkpoint(accelerator, checkpoint, model=model, optimizer=optimizer)
        assert draw_numbers() == expected
    # without the run's state the generators stay as they are
    seed_generators(1)
    load_checkpoint(
        accelerator, checkpoint, model=model, optimizer=optimizer, excluded_parts=["train_state"]
    )
    assert draw_numbers() == numbers_of_rank_0
