"""Writes the throughput that ships with the package, from the figures of benchmarks/results.

    python benchmarks/shipped_throughput.py

Per GPU, model, size and tokens of a step: ours with graphs, else without. Left out are files of
earlier states of the project, other models than the shipped configs, and figures with a note.
"""

import json
from pathlib import Path

from flame_accel.config import ModelConfig
from flame_accel.diagnosis.dry_run.rehearsal import rehearsal_mode
from flame_accel.diagnosis.dry_run.run_time import TABLE, Measurement
from flame_accel.models import load_model_config, register_models, train_flops_per_token

ROOT = Path(__file__).resolve().parents[1]
FILES = ("h100_graphs", "h200_graphs", "h200_mixers")
VOCABULARY, SEQ_LEN = 32_000, 4096


def collect_measurements() -> list[Measurement]:
    """The rows of the table, in its order."""
    rows: dict[tuple[str, str, str, int], Measurement] = {}
    for name in FILES:
        source = f"benchmarks/results/throughput_{name}.json"
        for row in json.loads((ROOT / source).read_text(encoding="utf-8")):
            speed = row.get("ours_graphs_tok_s") or row.get("ours_tok_s")
            shape, _, tokens = row["shape"].partition("-")
            config = ROOT / f"configs/{row['model']}_{row['size']}.json"
            if "note" in row or shape != "ragged" or not config.exists() or speed is None:
                continue
            rows[row["gpu"], row["model"], row["size"], int(tokens)] = Measurement(
                gpu=row["gpu"],
                model=row["model"],
                size=row["size"],
                tokens=int(tokens),
                tokens_per_second=speed,
                flops_per_token=_count_flops(str(config)),
                source=source,
            )
    return [rows[key] for key in sorted(rows)]


def _count_flops(config_file: str) -> float:
    config = load_model_config(config_file)
    config.vocab_size = VOCABULARY
    # where RWKV-7 is built without its initial values
    with rehearsal_mode(ModelConfig()):
        flops = train_flops_per_token(config, SEQ_LEN)
    assert flops is not None, f"{config_file}: no formula"
    return float(f"{flops:.4g}")


def main() -> None:
    """Writes the file."""
    register_models(())
    lines = ",\n".join(f"  {json.dumps(row)}" for row in collect_measurements())
    TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
