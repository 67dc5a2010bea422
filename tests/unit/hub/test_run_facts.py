"""The facts of a run, from its files."""

from pathlib import Path

from flame_accel.hub.run_facts import count_stored_parameters


def test_stored_weights_are_counted_over_all_files(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    assert count_stored_parameters(tmp_path) is None
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(5)}, tmp_path / "model-2.safetensors")
    assert count_stored_parameters(tmp_path) == 18
