"""Files of configurations are those of fla's own config cache."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from flame_accel.kernels.tuning import (
    flame_accel_cache_folder,
    shipped_configs_folder,
    tuned_configs,
)

CONFIG = {
    "kwargs": {"BT": 32},
    "num_warps": 4,
    "num_stages": 2,
    "num_ctas": 1,
    "maxnreg": None,
    "ir_override": None,
}
KEY = (4096, 64, True, "torch.float32")


def test_fla_reads_what_was_saved(tmp_path, monkeypatch):
    from fla.ops.utils import cache

    tuned_configs.save_tuned_config(tmp_path, "imaginary_kernel", KEY, CONFIG, "3.7.1")
    monkeypatch.setattr(cache, "FLA_CACHE_MODE", cache.FlaCacheMode.STRICT)
    monkeypatch.setenv("FLA_CONFIG_DIR", str(tmp_path))
    config = cache.load_cached_config("imaginary_kernel", cache.AutotuneKey(KEY))
    assert config is not None
    assert (config["kwargs"], config["num_warps"], config["num_stages"]) == ({"BT": 32}, 4, 2)


def test_an_entry_is_replaced_and_others_are_kept(tmp_path):
    other_key = (4096, 128, True, "torch.float32")
    for key, block in ((KEY, 16), (other_key, 64), (KEY, 32)):
        config = CONFIG | {"kwargs": {"BT": block}}
        tuned_configs.save_tuned_config(tmp_path, "kernel", key, config, "3.7.1")
    entries = tuned_configs.load_tuned_entries_or_raise_if_malformed(tmp_path, "kernel")
    blocks = {entry.key[1]: entry.config["kwargs"]["BT"] for entry in entries}
    assert blocks == {64: 32, 128: 64}


@pytest.mark.parametrize(
    "key, found",
    [
        ((3000, 64, True, "torch.float32"), True),
        ((2048, 64, True, "torch.float32"), False),
        ((4096, 63, True, "torch.float32"), False),
        ((4096, 64, False, "torch.float32"), False),
        ((4096, 64, True, "torch.bfloat16"), False),
    ],
)
def test_only_counts_are_compared_by_their_power_of_two(tmp_path, key, found):
    tuned_configs.save_tuned_config(tmp_path, "kernel", KEY, CONFIG, "3.7.1")
    config = tuned_configs.find_exact_or_rounded_config(
        tmp_path, "kernel", ["T", "D", "IS_VARLEN"], key
    )
    assert (config == CONFIG) == found


def test_the_cache_folder_is_the_one_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FLAME_ACCEL_CACHE", raising=False)
    assert flame_accel_cache_folder() == tmp_path / "xdg/flame_accel"
    monkeypatch.setenv("FLAME_ACCEL_CACHE", str(tmp_path / "mine"))
    assert flame_accel_cache_folder() == tmp_path / "mine"


def test_shipped_configurations_are_of_kernels_that_fla_has():
    import fla

    source = "".join(p.read_text() for p in Path(fla.__file__).parent.rglob("*.py"))
    files = list(shipped_configs_folder("").rglob("*.json"))
    assert files
    for path in files:
        content = json.loads(path.read_text())
        assert path.parent.name.startswith("sm_"), path
        assert f"def {path.stem}(" in source, path
        for digest, entry in content["autotune_entries"].items():
            assert tuned_configs.hash_json_key(entry["autotune_key"]) == digest
            assert set(entry["config"]) >= {"kwargs", "num_warps", "num_stages", "num_ctas"}
