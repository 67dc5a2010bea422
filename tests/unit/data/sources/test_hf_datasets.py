"""Calls of the `datasets` library leave its settings as they were."""

import datasets

from tests.helpers.datasets_on_disk import opened, write_one


def test_progress_bars_come_back(tmp_path):
    opened(write_one("a.txt", b"text")(tmp_path))
    assert not datasets.are_progress_bars_disabled()
