"""fla's Mamba configs read and write transformers' field names next to fla's."""

import json

import pytest
import torch
from transformers import AutoConfig

from flame_accel.config.errors import UserError
from flame_accel.models import load_model_config
from flame_accel.models.mamba_fields import FLA_NAMES, rename_fields_to_fla_names


@pytest.mark.parametrize("model_type", FLA_NAMES)
def test_both_names_are_read_and_written(model_type, tmp_path):
    config = AutoConfig.for_model(model_type, layer_norm_epsilon=0.5)
    assert config.norm_eps == 0.5
    config.norm_eps = 0.25
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["norm_eps"] == written["layer_norm_epsilon"] == 0.25
    for loaded in (AutoConfig.from_pretrained(tmp_path), load_model_config(str(tmp_path))):
        assert loaded.norm_eps == 0.25


def test_limits_of_time_steps_come_back_infinite(tmp_path):
    AutoConfig.for_model("mamba2").save_pretrained(tmp_path)
    assert list(load_model_config(str(tmp_path)).dt_limit) == [0.0, torch.inf]


def test_a_field_with_two_values_is_refused(tmp_path):
    fields = {"model_type": "mamba2", "norm_eps": 1e-5, "layer_norm_epsilon": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"norm_eps = 1e-05 and layer_norm_epsilon = 0\.001 name"):
        load_model_config(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"time_step_rank": "auto", "dt_rank": 4}, {"dt_rank": 4}),
        ({"time_step_rank": 4, "dt_rank": "auto"}, {"dt_rank": 4}),
        ({"dt_limit": (0.0, 1.0), "time_step_limit": [0.0, 1.0]}, {"dt_limit": (0.0, 1.0)}),
        ({"time_step_rank": 4, "other": 1}, {"dt_rank": 4, "other": 1}),
    ],
)
def test_names_of_fla_win_where_both_mean_the_same(fields, expected):
    names = {"time_step_rank": "dt_rank", "time_step_limit": "dt_limit"}
    assert rename_fields_to_fla_names(fields, names) == expected
