"""Laws that need a CUDA device: the exported model under fla's own kernels."""

import inspect
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.helpers.runs import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# the head sizes of configs/gla_340M.json, so that one set of tuned kernels serves both
SMALL_GLA = {
    "model_type": "gla",
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "expand_k": 0.5,
    "expand_v": 1.0,
    "vocab_size": 258,
}


def forward(model, batch):
    """Logits in the precision and packing of training: other ones would tune other kernels."""
    inputs = {name: value.cuda() for name, value in batch.items()}
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        return model.eval()(**inputs, use_cache=False).logits.float().cpu()


LOAD_WITH_FLA = f"""
import sys, torch, fla
from transformers import AutoModelForCausalLM, AutoTokenizer
{inspect.getsource(forward)}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).cuda()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
kept = torch.load(sys.argv[2])
kept["loaded"] = forward(model, kept["batch"])
start = kept["batch"]["input_ids"][:, :8].cuda()
with torch.autocast("cuda", torch.bfloat16):
    kept["text"] = tokenizer.decode(model.generate(start, max_new_tokens=16)[0])
assert "flame_accel" not in sys.modules
torch.save(kept, sys.argv[2])
"""


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


def test_the_export_loads_with_fla_alone_and_gives_the_trained_logits(
    tmp_path, flags, train_here, monkeypatch
):
    from transformers import AutoModelForCausalLM

    from flame_accel import run_outputs

    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = tmp_path / "gla.json"
    config.write_text(json.dumps(SMALL_GLA))
    ids = torch.randint(258, (1, 65_536), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 1, 700, 4096, 40_000, 65_536], dtype=torch.int32)
    kept: dict[str, Any] = {"batch": {"input_ids": ids, "cu_seqlens": bounds}}
    export_model = run_outputs.export_model

    def keep_logits(accelerator, model, *arguments, **options):
        kept["logits"] = forward(model, kept["batch"])
        export_model(accelerator, model, *arguments, **options)

    monkeypatch.setattr(run_outputs, "export_model", keep_logits)
    train_here(
        flags(
            **{
                "model.config": config,
                "training.dataset": "python-stdlib",
                "training.batch_size": 16,
                "training.seq_len": 4096,
                "training.varlen": True,
                "evaluation.sample_tokens": 0,
                # fla alone keeps the residual stream in fp32 under autocast
                "training.residual_dtype": "float32",
            }
        )
    )
    folder = tmp_path / "run/hf"
    # in one process the kernels' tuned configurations are the same: so is every bit
    reloaded = forward(AutoModelForCausalLM.from_pretrained(folder).cuda(), kept["batch"])
    assert torch.equal(reloaded, kept["logits"])

    exchange = tmp_path / "exchange.pt"
    torch.save(kept, exchange)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    elsewhere = os.pathsep.join(path for path in paths if path and path != str(ROOT))
    subprocess.run(
        [sys.executable, "-c", LOAD_WITH_FLA, str(folder), str(exchange)],
        env={**os.environ, "PYTHONPATH": elsewhere},
        cwd=tmp_path,
        check=True,
    )
    loaded = torch.load(exchange)
    error = relative_error(loaded["loaded"], kept["logits"])
    print(f"logits in a fresh process: relative error {error:.2e}; text {loaded['text']!r}")
    # another process may tune to other block sizes, and so sum bf16 products in another order
    assert error < 1e-2
    assert len(loaded["text"]) > 0
