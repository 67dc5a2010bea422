"""The export command: what training exports, from any checkpoint, in a chosen dtype."""

import json

import pytest

from flame_accel.__main__ import main
from tests.helpers.checkpoints import equal_tensors, read_weights
from tests.helpers.runs import file_digests


def test_the_export_command_gives_what_training_gave(train_here, flags, tmp_path):
    train_here(flags())
    run = tmp_path / "run"
    main(["export", str(run), str(tmp_path / "again")])
    assert file_digests(tmp_path / "again") == file_digests(run / "hf")


def test_the_dtype_and_the_newest_checkpoint_are_chosen(finished, tmp_path, capsys):
    main(["export", str(finished), str(tmp_path / "out"), "--dtype=bfloat16"])
    assert f"exported {finished / 'checkpoint/step-8'}" in capsys.readouterr().out
    stored, trained = read_weights(tmp_path / "out"), read_weights(finished / "checkpoint/step-8")
    assert equal_tensors(stored, {name: weight.bfloat16() for name, weight in trained.items()})
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert "| updates | 8 |" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("output exists", "already exists"),
        ("no checkpoint", "contains no complete checkpoint"),
        ("damaged", "is damaged: data.json"),
    ],
)
def test_what_cannot_be_exported_is_refused(finished, tmp_path, capsys, fault, message):
    source, output = finished, tmp_path / "out"
    if fault == "output exists":
        output.mkdir()
    elif fault == "no checkpoint":
        source = finished / "hf"
    else:
        (finished / "checkpoint/step-8/data.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(source), str(output)])
    assert ended.value.code == (2 if fault == "output exists" else 1)
    assert message in capsys.readouterr().err
    assert fault == "output exists" or not output.exists()


def test_the_steps_that_exist_are_named(finished, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(finished / "checkpoint/step-7"), str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert "step-7: no such folder" in printed and "step-4, step-8" in printed
