"""hub.json: what of a run is on the Hub."""

from dataclasses import replace

import pytest

from flame_accel.hub.upload_record import (
    FinishedUpload,
    PlannedUpload,
    UploadRecord,
    read_record,
    write_record,
)

PLANNED = PlannedUpload(source="hf", step=8, revisions=("main",), tag=None, message="Model")
DONE = FinishedUpload(source="hf", step=8, commit="0" * 40, checksum="abc")


def test_a_record_reads_back_equal_for_its_own_repository(tmp_path):
    record = UploadRecord(
        repo_id="a/b", finished={"main": DONE}, planned=[PLANNED], checkpoints_since_upload=2
    )
    assert read_record(tmp_path, "a/b") is None
    write_record(tmp_path, record)
    assert read_record(tmp_path, "a/b") == record
    assert read_record(tmp_path, "a/other") is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"repo_id": "a/b"}', '{"repo_id": "a/b", "pl']
)
def test_a_record_that_cannot_be_read_costs_nothing_but_an_upload(tmp_path, content):
    (tmp_path / "hub.json").write_text(content)
    assert read_record(tmp_path, "a/b") is None


def test_a_model_is_there_if_every_branch_holds_it():
    record = UploadRecord(repo_id="a/b", finished={"main": DONE})
    assert record.has_uploaded(PLANNED, "abc")
    assert not record.has_uploaded(PLANNED, "other")
    two = PlannedUpload(source="hf", step=8, revisions=("step-8", "main"), tag=None, message="")
    assert not record.has_uploaded(two, "abc")


@pytest.mark.parametrize(
    ("older", "is_replaced"),
    [
        ({}, True),
        ({"revisions": ("main", "step-4")}, False),
        ({"revisions": ("step-4",)}, False),
        ({"tag": "step-4"}, False),
    ],
)
def test_an_upload_replaces_an_older_one_that_promised_no_branch_or_tag_of_its_own(
    older, is_replaced
):
    assert PLANNED.replaces(replace(PLANNED, step=4, **older)) is is_replaced
