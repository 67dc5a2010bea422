"""The sections show shares, masks, held-out documents, packings and damaged records."""

import numpy as np
import pytest

from flame_accel.commands.data import parse_options_without_required_model
from flame_accel.data import build_step_batches, load_tokenizer, open_data
from flame_accel.data.from_options import build_lanes
from flame_accel.data.loading.micro_batch import IGNORED_LABEL
from flame_accel.data.row_tracing import trace_first_rows
from tests.helpers.data_command import FORMS, ROW_OPTIONS, TEXTS, to_flags, to_json_lines


@pytest.mark.covers_option("training.data_probs")
def test_shares_are_by_tokens(run_data_command):
    assert FORMS["mixture"]["training.data_probs"] == "1,3"
    lines = run_data_command(FORMS["mixture"]).splitlines()
    first = next(line.split() for line in lines if "1. texts.jsonl" in line and "%" in line)
    assert first[-4] == "25.00%" and abs(float(first[-3].rstrip("%")) - 25) < 2


def test_what_is_masked_is_shown(run_data_command):
    printed = run_data_command(FORMS["conversations"], "--rows=1")
    assert ", of conversations\n" in printed
    assert '\n        masked  "<user>add 1 to ' in printed
    assert '\n        loss    "' in printed


@pytest.mark.covers_option("evaluation.held_out_share")
def test_held_out_documents_are_counted(run_data_command):
    assert FORMS["held out"]["evaluation.held_out_share"] == 0.4
    printed = run_data_command(FORMS["held out"])
    assert "held out   40.00% asked for, " in printed
    assert "evaluation on texts.jsonl, 30 documents, 40.00% of them held out" in printed


@pytest.mark.covers_option("training.packing")
def test_packings_are_compared_with_varlen(run_data_command):
    assert "training.packing" not in FORMS["lines"]
    assert "best_fit" not in run_data_command(FORMS["lines"])
    head = next(
        line for line in run_data_command(FORMS["best fit"]).splitlines() if "in 128 rows" in line
    )
    assert head.split()[-2:] == ["best_fit", "sequential"]


def test_damaged_records_are_named(run_data_command, data_folder):
    (data_folder / "half.jsonl").write_text(
        to_json_lines([{"text": text} for text in TEXTS]) + "{half\n"
    )
    printed = run_data_command({"training.dataset": "half.jsonl"})
    assert "30 documents, 1 damaged" in printed
    told = printed[printed.index("warning: damaged records") :]
    assert "half.jsonl, line 31" in told and "--training.max_bad_records" in told
    options = {"training.dataset": "half.jsonl", "training.max_bad_records": 2}
    assert "skips up to 2" in run_data_command(options)


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_are_those_of_step_1(form, data_folder, monkeypatch):
    monkeypatch.chdir(data_folder)
    options = {
        "model.tokenizer_path": "byte",
        **ROW_OPTIONS,
        "training.num_workers": 0,
        **FORMS[form],
    }
    config = parse_options_without_required_model(to_flags(options))
    data = open_data(
        config.training,
        config.evaluation,
        load_tokenizer(str(config.model.tokenizer_path), False),
    )
    step = next(iter(build_step_batches(config.training, data, rank=0, world_size=1)))
    ids = np.concatenate([batch["input_ids"].numpy().reshape(-1, 48) for batch in step])
    labels = np.concatenate([batch["labels"].numpy().reshape(-1, 48) for batch in step])
    stream = build_lanes(config.training, data, num_lanes=len(ids))
    rows = trace_first_rows(stream, range(len(ids)), 1, lambda skipped: None)
    for row, expected, label in zip(rows, ids, labels, strict=True):
        assert np.array_equal(row.tokens, expected)
        assert np.array_equal(row.targets, label != IGNORED_LABEL)
