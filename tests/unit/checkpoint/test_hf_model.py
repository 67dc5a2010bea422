"""Exports and checkpoints load with transformers, with the trained weights."""

import json
import subprocess
import sys

import pytest
import torch

from tests.helpers.runs import launch_environment

LOAD_ELSEWHERE = """
import sys, torch
import flame_accel
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
ids = torch.load(sys.argv[1])["ids"]
loaded = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded[folder] = {"logits": model(ids, use_cache=False).logits, "text": tokenizer.decode(
        model.generate(ids[:1, :5], max_new_tokens=12, do_sample=False)[0])}
torch.save(loaded, sys.argv[1])
"""


def test_the_export_loads_in_a_fresh_process_with_the_trained_logits(
    train_here, flags, tmp_path, monkeypatch
):
    from flame_accel import run_outputs

    kept = {}
    export_model = run_outputs.export_model

    def keep_logits(accelerator, model, tokenizer, *arguments, **options):
        kept["ids"] = torch.arange(40).reshape(2, 20)
        kept["logits"] = model.eval()(kept["ids"], use_cache=False).logits.detach()
        export_model(accelerator, model, tokenizer, *arguments, **options)

    monkeypatch.setattr(run_outputs, "export_model", keep_logits)
    train_here(flags())
    exchange = tmp_path / "exchange.pt"
    torch.save(kept, exchange)
    folders = [str(tmp_path / "run" / folder) for folder in ("hf", "checkpoint/step-8")]
    subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, str(exchange), *folders],
        env=launch_environment(),
        check=True,
    )
    loaded = torch.load(exchange)
    assert list(loaded) == folders
    for folder, found in loaded.items():
        assert torch.equal(found["logits"], kept["logits"]), folder
        assert isinstance(found["text"], str)


@pytest.mark.covers_option("checkpoint.export_dtype")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_config_names_the_dtype_that_is_stored(train_here, flags, tmp_path, dtype):
    from safetensors.torch import load_file as load_tensors
    from transformers import AutoModelForCausalLM

    train_here(flags(**{"checkpoint.export_dtype": dtype, "training.steps": 4}))
    folder = tmp_path / "run/hf"
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    stored = load_tensors(folder / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {getattr(torch, dtype)}
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == getattr(torch, dtype)
