"""What a checkpoint contains: everything, or only weights where asked."""

import pytest
import torch

from flame_accel.config import UserError
from tests.helpers.checkpoints import equal_tensors, list_checkpoints, read_weights
from tests.helpers.runs import WITHOUT_SAMPLE, read_losses, read_records

# what


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
