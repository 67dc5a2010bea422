"""The speed of light of a training step: forward, backward, clip, fused AdamW, and nothing else.

No framework, no logging, no data loading: the batches (the same that `train.py` reads) lie on the
device before the clock starts. `train.py` is measured against this loop in the same call on the
same machine.

    python benchmarks/plain_loop.py --config configs/gla_340M.json --tokenizer FOLDER --steps 30
"""

import argparse
import json
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from flame_accel.config import EvaluationConfig, TrainingConfig
from flame_accel.data import build_batches, load_tokenizer, open_data


def main() -> None:
    """Prints one JSON line: tokens/s over the last steps, peak memory, first and last loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seq_len", type=int, default=4096)
    parser.add_argument("--varlen", action="store_true")
    parser.add_argument("--context_len", type=int)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--skip", type=int, default=10, help="steps before the clock starts")
    arguments = parser.parse_args()
    training = TrainingConfig(
        dataset="python-stdlib",
        batch_size=arguments.batch_size,
        seq_len=arguments.seq_len,
        varlen=arguments.varlen,
        context_len=arguments.context_len,
        num_workers=0,
    )
    data = open_data(training, EvaluationConfig(), load_tokenizer(arguments.tokenizer, False))
    stream = iter(build_batches(training, data, rank=0, world_size=1))
    batches = []
    for _ in range(arguments.steps):
        (batch,) = next(stream)
        tensors = {name: value for name, value in batch.items() if name != "num_targets"}
        batches.append({name: value.cuda() for name, value in tensors.items()})

    torch.manual_seed(42)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(arguments.config), dtype=torch.float32
    ).cuda()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    losses, times = [], []
    for batch in batches:
        if len(times) <= arguments.skip:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    torch.cuda.synchronize()
    elapsed_seconds = time.perf_counter() - times[arguments.skip]
    tokens = arguments.batch_size * arguments.seq_len
    print(
        json.dumps(
            {
                "what": "plain loop",
                "tokens_per_second": tokens * (arguments.steps - arguments.skip) / elapsed_seconds,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                "first_step_seconds": times[1] - times[0],
                "first_loss": losses[0].item(),
                "last_loss": losses[-1].item(),
            }
        )
    )


if __name__ == "__main__":
    main()
