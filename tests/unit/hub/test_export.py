"""An export: complete or absent, open to whom the umask allows, beside the user's own files."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from flame_accel.checkpoint import hf_model
from flame_accel.data.tokens.tokenizer import load_tokenizer
from flame_accel.hub.export import export_model
from flame_accel.hub.model_card import ModelOrigin
from flame_accel.models.catalogue import tiny_config
from flame_accel.models.instantiate import instantiate_on_default_device

IDS = torch.arange(40).reshape(2, 20)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return instantiate_on_default_device(
        tiny_config("gla", vocab_size=258, eos_token_id=256, pad_token_id=257)
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("byte", trust_remote_code=False)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    export_model(
        Accelerator(cpu=True), model, tokenizer, folder, dtype=dtype, card_origin=ModelOrigin()
    )


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_of_the_umask(model, tokenizer, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        export(model, tokenizer, tmp_path / "hf")
    finally:
        os.umask(before)
    assert modes(tmp_path / "hf") == {mode}


def test_users_files_stay_and_stale_weights_go(model, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "hf"
    monkeypatch.setattr(hf_model, "MAX_SHARD_SIZE", "200KB")
    export(model, tokenizer, folder)
    assert len([*folder.glob("model-*.safetensors")]) > 1
    (folder / "results").mkdir()
    for name in ("eval.json", "model-notes.txt", "results/one.json"):
        (folder / name).write_text(name)
    monkeypatch.undo()
    export(model, tokenizer, folder)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    for name in ("eval.json", "model-notes.txt", "results/one.json"):
        assert (folder / name).read_text() == name


def test_a_model_in_several_files_loads(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_model, "MAX_SHARD_SIZE", "200KB")
    export(model, tokenizer, tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.equal(loaded(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)


def test_chat_template_and_special_tokens_are_exported(model, tokenizer, tmp_path):
    tokenizer.chat_template = TEMPLATE
    export(model, tokenizer, tmp_path / "hf")
    loaded = load_tokenizer(str(tmp_path / "hf"), trust_remote_code=False)
    assert loaded.chat_template == TEMPLATE
    assert loaded.pad_token_id == 257
    generation = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (256, 257)


def test_a_tokenizer_without_a_pad_token_pads_with_eos(tokenizer, tmp_path):
    tokenizer.pad_token = None
    without_pad = instantiate_on_default_device(
        tiny_config("gla", vocab_size=258, eos_token_id=256)
    )
    export(without_pad, tokenizer, tmp_path / "hf")
    loaded = load_tokenizer(str(tmp_path / "hf"), trust_remote_code=False)
    assert (loaded.pad_token_id, tokenizer.pad_token) == (256, None)
    assert loaded(["a", "abc"], padding=True)["attention_mask"] != [[1, 1, 1], [1, 1, 1]]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.generation_config.pad_token_id == 256
    # a row of the embedding that is trained
    assert model.config.pad_token_id is None


def read_kib(key: str) -> int:
    """A line of the kernel's account of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_an_export_in_bf16_holds_its_weights_once(tokenizer, tmp_path):
    big = instantiate_on_default_device(tiny_config("gla", vocab_size=2**18, hidden_size=128))
    before = read_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    export(big, tokenizer, tmp_path / "hf", torch.bfloat16)
    size = (tmp_path / "hf/model.safetensors").stat().st_size / 1024
    # two embeddings of 64 MiB
    assert size > 130_000
    assert read_kib("VmHWM") - before < 1.3 * size
