"""hub.json: what of a run is on the Hub."""

import json
from dataclasses import asdict, replace

import pytest

from flame_accel.hub.upload_record import (
    FinishedUpload,
    PlannedUpload,
    UploadRecord,
    read_upload_record_or_empty,
    remove_needless_stages,
    stage_folder,
    write_upload_record,
)

PLANNED = PlannedUpload(source="hf", step=8, revisions=("main",), tag=None, message="Model")
DONE = FinishedUpload(source="hf", step=8, commit="0" * 40, checksum="abc")


def test_a_record_reads_back_equal_for_its_own_repository(tmp_path):
    record = UploadRecord(
        repo_id="a/b", finished={"main": DONE}, planned=[PLANNED], checkpoints_since_upload=2
    )
    assert not read_upload_record_or_empty(tmp_path, "a/b", report_damage=print).has_begun()
    write_upload_record(tmp_path, record)
    assert read_upload_record_or_empty(tmp_path, "a/b", report_damage=print) == record
    # without the namespace of whoever was logged in
    assert read_upload_record_or_empty(tmp_path, "b", report_damage=print) == record
    other = read_upload_record_or_empty(tmp_path, "a/other", report_damage=print)
    assert not other.has_begun() and other.run_id == record.run_id


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "{}", '{"repo_id": 5}', '{"repo_id": "a/b"}', '{"repo_id": "a/b", "pl'),
        json.dumps({**asdict(UploadRecord(repo_id="a/b")), "run_id": 5}),
        json.dumps({**asdict(UploadRecord(repo_id="a/b")), "checkpoints_since_upload": "x"}),
        json.dumps(asdict(UploadRecord(repo_id="a/b", finished={"main": replace(DONE, commit=5)}))),
    ],
)
def test_a_record_that_cannot_be_read_costs_nothing_but_an_upload(tmp_path, content):
    (tmp_path / "hub.json").write_text(content)
    said: list[str] = []
    assert not read_upload_record_or_empty(tmp_path, "a/b", report_damage=said.append).has_begun()
    assert said == [
        f"{tmp_path / 'hub.json'} is damaged: what the run has uploaded before is not known"
    ]


def test_a_model_is_there_if_every_branch_holds_it():
    record = UploadRecord(repo_id="a/b", finished={"main": DONE})
    assert record.branches_hold_checksum(PLANNED.revisions, "abc")
    assert not record.branches_hold_checksum(PLANNED.revisions, "other")
    two = PlannedUpload(source="hf", step=8, revisions=("step-8", "main"), tag=None, message="")
    assert not record.branches_hold_checksum(two.revisions, "abc")


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
    assert PLANNED.covers_tag_and_branches_of(replace(PLANNED, step=4, **older)) is is_replaced


def test_an_upload_is_planned_until_every_branch_has_it(tmp_path):
    planned = replace(PLANNED, revisions=("main", "step-8"))
    record = UploadRecord(repo_id="a/b", planned=[planned])
    record.record_upload_and_drop_plans("hf", 8, {"main": "0" * 40}, "abc")
    assert record.planned == [planned]
    record.record_upload_and_drop_plans("hf", 8, {"step-8": "1" * 40}, "abc")
    assert record.planned == [] and record.branches_hold_checksum(planned.revisions, "abc")


def test_only_the_folders_of_planned_uploads_are_kept(tmp_path):
    record = UploadRecord(repo_id="a/b", planned=[PLANNED])
    kept, needless = stage_folder(tmp_path, PLANNED), tmp_path / ".tmp-hub-4-hf"
    kept.mkdir()
    needless.mkdir()
    remove_needless_stages(tmp_path, record)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_damaged_record_is_kept_aside_by_the_next_one(tmp_path):
    (tmp_path / "hub.json").write_text('{"repo_id": "a/b", "finished": 5}')
    for _ in range(2):
        write_upload_record(tmp_path, UploadRecord(repo_id="a/b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub.json", "hub.json.damaged-0"]
    assert '"finished": 5' in (tmp_path / "hub.json.damaged-0").read_text()
