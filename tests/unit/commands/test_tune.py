"""`python -m flame_accel tune` on a machine that has nothing to tune."""

import pytest

from flame_accel import kernels
from flame_accel.__main__ import main


@pytest.mark.skipif(kernels.triton_has_device(), reason="needs a machine without a Triton device")
def test_tuning_is_refused_where_nothing_can_be_tuned(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--model.config", "configs/gla_1M.json"])
    assert caught.value.code == 1
    assert "no Triton device" in capsys.readouterr().err
